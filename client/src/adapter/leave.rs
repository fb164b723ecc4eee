//! Leaving an adapter with servers, which provide it from then on.

use std::collections::BTreeSet;
use std::time::Duration;

use umbel_engine::train::PeftFiles;
use umbel_net::LinkProtocol;
use umbel_protocol::PeerId;
use umbel_protocol::published::{AdapterAnswer, KeepRefusal, Keeping};

use super::publish::Provided;
use crate::swarm::Swarm;
use crate::swarm::exchange::{AskError, Asking};

/// Servers that are asked: those that keep none say so at once.
const SERVERS_ASKED_MAX: usize = 64;

/// How long a server may take to answer a part: a megabyte takes 9 seconds at 1 Mbit/s, and what came last
/// is read and written as a whole.
const PART_TIMEOUT: Duration = Duration::from_secs(60);

/// What came of asking one server.
pub type Left = (PeerId, Result<(), LeaveError>);

/// Asks servers of the swarm to keep an adapter until so many of them do, and says what came of each. Those
/// of any model are asked, since files do not say by which name a swarm knows theirs.
pub async fn leave(swarm: &Swarm, files: PeftFiles, copies: usize) -> Vec<Left> {
    let adapter = Provided::new(files);
    let servers = swarm.announcements(None).await.into_iter().filter(|server| !server.draining);
    let (mut asked, mut left) = (BTreeSet::new(), Vec::new());
    for server in servers.filter(|server| asked.insert(server.peer)).take(SERVERS_ASKED_MAX) {
        let kept = leave_with(swarm, (server.peer, &server.addresses), &adapter).await;
        left.push((server.peer, kept));
        if left.iter().filter(|(_, kept)| kept.is_ok()).count() >= copies {
            break;
        }
    }
    left
}

async fn leave_with(
    swarm: &Swarm,
    (peer, addresses): (PeerId, &[String]),
    adapter: &Provided,
) -> Result<(), LeaveError> {
    let link = swarm.open_link(peer, addresses, LinkProtocol::Adapter).await;
    let mut link = Asking::on(link.map_err(AskError::from)?);
    let mut offset = None;
    loop {
        let question = adapter.keep(offset).ok_or(AskError::Mismatch)?;
        let answer = link.ask(question.encode(), PART_TIMEOUT).await?;
        let answer = AdapterAnswer::decode(answer).map_err(AskError::from)?;
        match answer {
            AdapterAnswer::Keeping(Keeping::Kept) => return Ok(()),
            AdapterAnswer::Keeping(Keeping::Refused(why)) => return Err(LeaveError::Refused(why)),
            // Each part leads on, so that this comes to an end.
            AdapterAnswer::Keeping(Keeping::Send { offset: next })
                if offset.is_none_or(|last| next > last) =>
            {
                offset = Some(next);
            }
            AdapterAnswer::Keeping(Keeping::Send { .. })
            | AdapterAnswer::Unknown
            | AdapterAnswer::Part { .. } => return Err(AskError::Mismatch.into()),
        }
    }
}

/// A server that does not keep an adapter.
#[derive(Debug, thiserror::Error)]
pub enum LeaveError {
    /// It cannot be reached, keeps none, or did not answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// It does not want it.
    #[error("{0}")]
    Refused(KeepRefusal),
}
