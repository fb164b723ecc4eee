//! `umbel swarm`

use std::io::Write as _;

use anyhow::Context as _;
use umbel_net::{Invite, SwarmKey};

use crate::args::{SwarmArguments, SwarmCommand};

pub(super) fn run(arguments: SwarmArguments) -> anyhow::Result<()> {
    let line = match arguments.what {
        SwarmCommand::New { file } => {
            SwarmKey::create(&file)?;
            format!("{} is the key: keep it, and serve with --swarm", file.display())
        }
        SwarmCommand::Invite { file, addresses } => {
            Invite::new(SwarmKey::load(&file)?, addresses)?.to_string()
        }
    };
    writeln!(std::io::stdout(), "{line}").context("stdout is closed")
}
