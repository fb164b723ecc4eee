//! What others of this user on this machine may tell a server: to pause, and to go on.
//!
//! It listens on a socket beside its identity, which no other server has at the same time.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::sync::watch;

/// Whether to pause, as it was told last.
pub(super) struct Control {
    wish: watch::Sender<bool>,
    /// Where it listens, if it can be told anything.
    socket: Option<PathBuf>,
}

/// The socket of the server that has this identity.
pub(crate) fn socket_of(identity: &Path) -> PathBuf {
    identity.with_extension("sock")
}

impl Control {
    /// Listens beside the identity. Where that cannot be, the server is as good without.
    pub(super) fn listen(identity: &Path) -> Self {
        let (wish, socket) = (watch::Sender::new(false), socket_of(identity));
        match sockets::listen(&socket, wish.clone()) {
            Ok(()) => Self { wish, socket: Some(socket) },
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "umbel pause will not find this server");
                Self { wish, socket: None }
            }
        }
    }

    /// Whether it is to pause.
    pub(super) fn wish(&self) -> watch::Receiver<bool> {
        self.wish.subscribe()
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        if let Some(socket) = &self.socket {
            // One that is left is in nobody's way: it is replaced by the next server.
            let _left = std::fs::remove_file(socket);
        }
    }
}

/// Tells the server with this socket to pause or to go on; whether that changes anything.
///
/// # Errors
/// Where none listens there.
pub(crate) async fn tell(socket: &Path, pause: bool) -> anyhow::Result<bool> {
    let told = sockets::tell(socket, pause).await;
    told.with_context(|| format!("no server can be told by {}", socket.display()))
}

#[cfg(unix)]
mod sockets {
    use std::io;
    use std::path::Path;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{UnixListener, UnixStream};
    use tokio::sync::watch;
    use tokio::time::timeout;

    /// How long either side waits for the other's byte.
    const PATIENCE: Duration = Duration::from_secs(5);

    /// How long to wait after a connection could not be taken: files may have run out.
    const AFTER_ERROR: Duration = Duration::from_secs(1);

    const PAUSE: u8 = b'p';
    const RESUME: u8 = b'r';
    const CHANGED: u8 = b'c';
    const AS_BEFORE: u8 = b'b';

    pub(super) fn listen(socket: &Path, wish: watch::Sender<bool>) -> io::Result<()> {
        // The lock on the identity says that whoever had it before is gone.
        if let Err(error) = std::fs::remove_file(socket)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let listener = UnixListener::bind(socket)?;
        only_for_its_user(socket)?;
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    // One after the other: each is over in no time, or given up.
                    Ok((stream, _)) => drop(timeout(PATIENCE, answer(stream, &wish)).await),
                    Err(error) => {
                        tracing::debug!(%error, "nobody was listened to");
                        tokio::time::sleep(AFTER_ERROR).await;
                    }
                }
            }
        });
        Ok(())
    }

    fn only_for_its_user(socket: &Path) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
    }

    async fn answer(mut stream: UnixStream, wish: &watch::Sender<bool>) -> io::Result<()> {
        let pause = match stream.read_u8().await? {
            PAUSE => true,
            RESUME => false,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        let changed = wish.send_if_modified(|wish| std::mem::replace(wish, pause) != pause);
        stream.write_u8(if changed { CHANGED } else { AS_BEFORE }).await
    }

    pub(super) async fn tell(socket: &Path, pause: bool) -> io::Result<bool> {
        let telling = async {
            let mut stream = UnixStream::connect(socket).await?;
            stream.write_u8(if pause { PAUSE } else { RESUME }).await?;
            Ok(stream.read_u8().await? == CHANGED)
        };
        timeout(PATIENCE, telling).await?
    }
}

#[cfg(not(unix))]
mod sockets {
    use std::io;
    use std::path::Path;

    use tokio::sync::watch;

    pub(super) fn listen(_: &Path, _: watch::Sender<bool>) -> io::Result<()> {
        Ok(())
    }

    pub(super) async fn tell(_: &Path, _: bool) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_is_told_and_what_it_left_is_in_nobodys_way() {
        let folder = tempfile::tempdir().unwrap();
        let identity = folder.path().join("identity.pem");
        let socket = socket_of(&identity);
        assert!(tell(&socket, true).await.is_err(), "nobody is there");
        std::fs::write(&socket, "left").unwrap();
        let control = Control::listen(&identity);
        let wish = control.wish();
        assert!(!*wish.borrow());
        assert!(tell(&socket, true).await.unwrap());
        assert!(*wish.borrow());
        assert!(!tell(&socket, true).await.unwrap(), "it was told that before");
        assert!(tell(&socket, false).await.unwrap());
        assert!(!*wish.borrow());
        drop(control);
        assert!(!socket.exists());
    }
}
