//! Runs by their names: every member says in the hash table of a swarm that it is in one.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use futures::future::join_all;
use sha2::{Digest as _, Sha256};
use umbel_net::Network;
use umbel_protocol::{ModelId, PeerId};

use super::{NamedRun, TogetherError};

/// Goes before a name, so that its key is no key of anything else.
const DOMAIN: &[u8] = b"umbel run v1\0";

/// The longest name.
const NAME_BYTES_MAX: usize = 64;

/// How often a run that is to be there is looked for. Its members say so again half a second after they have
/// met somebody, and a question takes a second or two.
const LOOKS: u32 = 5;

/// How long after one look there is another: nothing tells of a record that comes to the hash table, and
/// who joins a run at the moment it begins would else be told that there is none.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// What people call a run: letters, digits, `-`, `_` and `.`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunName(String);

impl RunName {
    /// Under which key its members are found.
    pub(super) fn key(&self, model: ModelId) -> [u8; 32] {
        let hash = Sha256::new().chain_update(DOMAIN).chain_update(model.as_bytes());
        hash.chain_update(self.0.as_bytes()).finalize().into()
    }
}

impl FromStr for RunName {
    type Err = InvalidRunName;

    fn from_str(text: &str) -> Result<Self, InvalidRunName> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        let is_one = (1..=NAME_BYTES_MAX).contains(&text.len()) && text.chars().all(plain);
        if is_one { Ok(Self(text.to_owned())) } else { Err(InvalidRunName) }
    }
}

impl fmt::Display for RunName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that names no run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a run's name has 1 to {NAME_BYTES_MAX} letters, digits, -, _ or .")]
pub struct InvalidRunName;

/// The members of a run that is to be joined; nobody for one that is to be begun.
///
/// # Errors
/// [`TogetherError`] where there is none to join, or one where it is to be begun.
pub(super) async fn find(
    network: &Network,
    named: &NamedRun,
    model: ModelId,
) -> Result<Vec<PeerId>, TogetherError> {
    let (name, key) = (named.name.clone(), named.name.key(model));
    if !named.joins {
        // Members that are gone are remembered for a while, and keep nobody from the name.
        return match reachable(network, key).await.as_slice() {
            [] => Ok(Vec::new()),
            [_, ..] => Err(TogetherError::Taken { name }),
        };
    }
    for look in 0..LOOKS {
        if look > 0 {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let members = reachable(network, key).await;
        if !members.is_empty() {
            return Ok(members);
        }
    }
    Err(TogetherError::NoRun { name })
}

/// Those who say that they are in a run and are there.
async fn reachable(network: &Network, key: [u8; 32]) -> Vec<PeerId> {
    let members = network.meet_providers(key).await.into_iter();
    let reached = members
        .map(|member| async move { network.reach(member, &[]).await.is_ok().then_some(member) });
    join_all(reached).await.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_differ_by_model() {
        for wrong in ["", "a/b", "two words", "/ip4/10.0.0.7", &"x".repeat(65)] {
            assert_eq!(wrong.parse::<RunName>(), Err(InvalidRunName), "{wrong}");
        }
        let (one, other): (RunName, RunName) = ("ours-2".parse().unwrap(), "ours".parse().unwrap());
        let models = [[1; 32], [2; 32]].map(ModelId::from_bytes);
        assert_ne!(one.key(models[0]), one.key(models[1]));
        assert_ne!(one.key(models[0]), other.key(models[0]));
        assert_eq!(one.to_string(), "ours-2");
    }
}
