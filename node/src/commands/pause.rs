//! `umbel pause` and `umbel resume`

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};

use crate::args::PauseArguments;
use crate::config::Config;
use crate::serve::control::{Told, identity_of, socket_of, tell};

/// Tells one server, or all of this user.
pub(super) async fn run(
    arguments: PauseArguments,
    pause: bool,
    config: &Config,
) -> anyhow::Result<()> {
    let (mut told, mut failed) = (0, None);
    for socket in sockets(arguments.identity.as_deref(), &config.data_dir) {
        match tell(&socket, pause).await {
            Ok(does) => {
                told += 1;
                let what = match (pause, does) {
                    (true, Told::Changed) => "pauses",
                    (true, Told::AsBefore | Told::StillPauses) => "paused already",
                    (false, Told::Changed) => "goes on",
                    (false, Told::AsBefore) => "was not paused",
                    (false, Told::StillPauses) => "pauses on, by its --hours or --yield-to-load",
                };
                let server = identity_of(&socket);
                writeln!(std::io::stdout(), "{what}: the server of {}", server.display())
                    .context("stdout is closed")?;
            }
            Err(error) => failed = Some(error),
        }
    }
    match failed {
        // Sockets of servers that were killed are left over.
        _ if told > 0 => Ok(()),
        Some(error) => Err(error),
        None => bail!("no server of this user runs here; name one by its --identity"),
    }
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
