//! `umbel pause` and `umbel resume`

use std::io::{self, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::args::PauseArguments;
use crate::config::Config;
use crate::serve::control::{Told, identity_of, socket_of, tell};
use crate::telemetry::report;

/// Tells one server, or all of this user.
pub(super) async fn run(
    arguments: PauseArguments,
    pause: bool,
    config: &Config,
) -> anyhow::Result<()> {
    let sockets = sockets(arguments.identity.as_deref(), &config.data_dir);
    let All { said, gone, failed } = tell_all(&sockets, pause).await;
    failed.iter().for_each(report);
    if !said.is_empty() {
        std::io::stdout().write_all(said.as_bytes()).context("stdout is closed")?;
    }
    match gone {
        _ if !failed.is_empty() => bail!("not every server could be told"),
        _ if !said.is_empty() => Ok(()),
        Some(error) => Err(error),
        None => bail!("no server of this user runs here; name one by its --identity"),
    }
}

/// What came of it.
#[derive(Debug, Default)]
struct All {
    /// What those do who were told, a line for each.
    said: String,
    /// Why the last of those could not be told who are gone: sockets of servers that were killed are left
    /// over.
    gone: Option<anyhow::Error>,
    /// Why others could not be told.
    failed: Vec<anyhow::Error>,
}

/// Tells every server, whatever comes of the others.
async fn tell_all(sockets: &[PathBuf], pause: bool) -> All {
    let mut all = All::default();
    for socket in sockets {
        match tell(socket, pause).await {
            Ok(does) => {
                let what = match (pause, does) {
                    (true, Told::Changed) => "pauses",
                    (true, Told::AsBefore | Told::StillPauses) => "paused already",
                    (false, Told::Changed) => "goes on",
                    (false, Told::AsBefore) => "was not paused",
                    (false, Told::StillPauses) => "pauses on, by its --hours or --yield-to-load",
                };
                let server = identity_of(socket);
                all.said += &format!("{what}: the server of {}\n", server.display());
            }
            Err(error) if is_gone(&error) => all.gone = Some(error),
            Err(error) => all.failed.push(error),
        }
    }
    all
}

/// Whether nobody is there to be told.
fn is_gone(error: &anyhow::Error) -> bool {
    let kind = error.downcast_ref().map(io::Error::kind);
    matches!(kind, Some(ErrorKind::ConnectionRefused | ErrorKind::NotFound))
}

/// The socket of the one that was named, or of each that took an identity of the user's own.
fn sockets(named: Option<&Path>, data_dir: &Path) -> Vec<PathBuf> {
    if let Some(identity) = named {
        return vec![socket_of(identity)];
    }
    let entries = std::fs::read_dir(data_dir).into_iter().flatten().flatten();
    let mut sockets: Vec<_> = entries.map(|entry| entry.path()).collect();
    sockets.retain(|path| path.extension().is_some_and(|extension| extension == "sock"));
    sockets.sort();
    sockets
}

#[cfg(all(test, unix))]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    use super::*;

    /// A server that answers with these bytes once it is told something.
    fn answer(socket: &Path, bytes: &'static [u8]) {
        let listener = UnixListener::bind(socket).expect("a free socket");
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("somebody asks");
            stream.read_u8().await.expect("it is told something");
            stream.write_all(bytes).await.expect("it is listened to");
        });
    }

    #[tokio::test]
    async fn every_server_is_told_and_one_that_does_not_answer_is_no_secret() {
        let folder = tempfile::tempdir().unwrap();
        let names = ["a.pem.sock", "b.pem.sock", "c.pem.sock", "d.pem.sock", "e.pem.sock"];
        let sockets = names.map(|name| folder.path().join(name));
        answer(&sockets[0], b"");
        answer(&sockets[1], b"c");
        drop(UnixListener::bind(&sockets[2]).unwrap());
        answer(&sockets[4], b"b");
        let All { said, gone, failed } = tell_all(&sockets, true).await;
        let identity = |number: usize| identity_of(&sockets[number]).display().to_string();
        let expected = [
            format!("pauses: the server of {}\n", identity(1)),
            format!("paused already: the server of {}\n", identity(4)),
        ];
        assert_eq!(said, expected.concat());
        assert!(format!("{:#}", gone.unwrap()).contains(names[3]), "it was never there");
        assert_eq!(failed.len(), 1, "{failed:#?}");
        assert!(format!("{:#}", failed[0]).contains(names[0]), "{failed:#?}");
    }
}
