//! What others of this user on this machine may tell a server: to pause, and to go on.
//!
//! It listens on a socket beside its identity, which no other server has at the same time.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use tokio::sync::watch;

use super::rest::Pauses;

/// Whether to pause.
pub(super) struct Control {
    pauses: watch::Sender<Pauses>,
    /// Where it listens, if it can be told anything.
    socket: Option<PathBuf>,
}

/// The socket of the server that has this identity: no two files have the same one.
pub(crate) fn socket_of(identity: &Path) -> PathBuf {
    let mut socket = identity.as_os_str().to_owned();
    socket.push(".sock");
    socket.into()
}

/// The identity of the server that has this socket.
pub(crate) fn identity_of(socket: &Path) -> PathBuf {
    socket.with_extension("")
}

impl Control {
    /// Listens beside the identity. Where that cannot be, the server is as good without.
    pub(super) fn listen(identity: &Path) -> Self {
        let (pauses, socket) = (watch::Sender::new(Pauses::default()), socket_of(identity));
        match sockets::listen(&socket, pauses.clone()) {
            Ok(()) => Self { pauses, socket: Some(socket) },
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "umbel pause will not find this server");
                Self { pauses, socket: None }
            }
        }
    }

    /// Why it is to pause, if it is.
    pub(super) const fn pauses(&self) -> &watch::Sender<Pauses> {
        &self.pauses
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

/// What a server does that was told something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Told {
    /// As it was told.
    Changed,
    /// What it did before.
    AsBefore,
    /// It is to go on, and has other reasons to pause.
    StillPauses,
}

/// Tells the server with this socket to pause or to go on.
///
/// # Errors
/// Where none listens there.
pub(crate) async fn tell(socket: &Path, pause: bool) -> anyhow::Result<Told> {
    let told = sockets::tell(socket, pause).await;
    told.with_context(|| format!("no server can be told by {}", socket.display()))
}

#[cfg(unix)]
mod sockets {
    use std::io;
    use std::os::unix::fs::FileTypeExt as _;
    use std::path::Path;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{UnixListener, UnixStream};
    use tokio::sync::watch;
    use tokio::time::timeout;

    use super::{Pauses, Told};

    /// How long either side waits for the other's byte.
    const PATIENCE: Duration = Duration::from_secs(5);

    /// How long to wait after a connection could not be taken: files may have run out.
    const AFTER_ERROR: Duration = Duration::from_secs(1);

    const PAUSE: u8 = b'p';
    const RESUME: u8 = b'r';
    const CHANGED: u8 = b'c';
    const AS_BEFORE: u8 = b'b';
    const STILL_PAUSES: u8 = b's';

    pub(super) fn listen(socket: &Path, pauses: watch::Sender<Pauses>) -> io::Result<()> {
        match std::fs::symlink_metadata(socket) {
            // The lock on the identity says that whoever had it before is gone.
            Ok(left) if left.file_type().is_socket() => std::fs::remove_file(socket)?,
            Ok(_) => {
                let reason = format!("{} is no socket", socket.display());
                return Err(io::Error::new(io::ErrorKind::AlreadyExists, reason));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let listener = UnixListener::bind(socket)?;
        only_for_its_user(socket)?;
        tokio::spawn(async move {
            loop {
                match listener.accept().await {
                    // One after the other: each is over in no time, or given up.
                    Ok((stream, _)) => drop(timeout(PATIENCE, answer(stream, &pauses)).await),
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

    async fn answer(mut stream: UnixStream, pauses: &watch::Sender<Pauses>) -> io::Result<()> {
        let pause = match stream.read_u8().await? {
            PAUSE => true,
            RESUME => false,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        let changed = Pauses::set(pauses, |pauses| pauses.told = pause);
        let still = !pause && pauses.borrow().any();
        stream
            .write_u8(if still {
                STILL_PAUSES
            } else if changed {
                CHANGED
            } else {
                AS_BEFORE
            })
            .await
    }

    pub(super) async fn tell(socket: &Path, pause: bool) -> io::Result<Told> {
        let telling = async {
            let mut stream = UnixStream::connect(socket).await?;
            stream.write_u8(if pause { PAUSE } else { RESUME }).await?;
            match stream.read_u8().await? {
                CHANGED => Ok(Told::Changed),
                AS_BEFORE => Ok(Told::AsBefore),
                STILL_PAUSES => Ok(Told::StillPauses),
                _ => Err(io::ErrorKind::InvalidData.into()),
            }
        };
        timeout(PATIENCE, telling).await?
    }
}

#[cfg(not(unix))]
mod sockets {
    use std::io;
    use std::path::Path;

    use tokio::sync::watch;

    pub(super) fn listen(_: &Path, _: watch::Sender<super::Pauses>) -> io::Result<()> {
        Ok(())
    }

    pub(super) async fn tell(_: &Path, _: bool) -> io::Result<super::Told> {
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
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        assert!(socket.exists(), "one that was killed left it");
        let control = Control::listen(&identity);
        let pauses = control.pauses();
        assert!(!pauses.borrow().any());
        assert_eq!(tell(&socket, true).await.unwrap(), Told::Changed);
        assert!(pauses.borrow().told);
        assert_eq!(tell(&socket, true).await.unwrap(), Told::AsBefore);
        assert_eq!(tell(&socket, false).await.unwrap(), Told::Changed);
        assert!(!pauses.borrow().any());
        drop(control);
        assert!(!socket.exists());
    }
    #[tokio::test]
    async fn each_identity_has_a_socket_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let identities =
            ["a", "a.1", "a.2", "a.pem", "a.sock"].map(|name| folder.path().join(name));
        let controls = identities.clone().map(|identity| Control::listen(&identity));
        for (told, identity) in identities.iter().enumerate() {
            let socket = socket_of(identity);
            assert_eq!(identity_of(&socket), *identity);
            assert_eq!(tell(&socket, true).await.unwrap(), Told::Changed);
            for (other, control) in controls.iter().enumerate() {
                assert_eq!(control.pauses().borrow().told, other <= told, "{told}, {other}");
            }
        }
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        for (identity, file) in [("k", "k.sock"), ("k.sock", "k.sock.sock")] {
            let file = folder.path().join(file);
            std::fs::write(&file, "a key").unwrap();
            drop(Control::listen(&folder.path().join(identity)));
            assert_eq!(std::fs::read(&file).unwrap(), b"a key");
        }
    }
}
