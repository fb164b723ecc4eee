//! The sockets of Umbel: who a peer is, how it finds others, and the links between them.
//!
//! This crate knows neither models nor sessions. A [`Network`] is one peer: it listens, dials, and
//! keeps its place in a distributed hash table (libp2p: QUIC first, TCP with Noise and Yamux as
//! the fallback, Kademlia, identify, ping, mDNS). A [`Link`] is a long-lived stream of frames to
//! another peer, for one [`LinkProtocol`]; who does not read it holds up its sender and nobody
//! else.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use umbel_net::{Identity, LinkProtocol, Network, NetworkConfig, Role};
//!
//! let network = Network::start(NetworkConfig::new(Identity::ephemeral(), Role::Client)).await?;
//! let peers = network.join(&["/ip4/10.0.0.7/udp/4001/quic-v1".parse()?]).await?;
//! let link = network.open_link(peers[0], &[], LinkProtocol::Directory).await?;
//! let (sender, receiver) = link.split();
//! # let _ = (sender, receiver);
//! # Ok(())
//! # }
//! ```
//!
//! | module | what it holds |
//! |---|---|
//! | `identity` | the key of a peer, in a file that one process at a time may have |
//! | `network` | the handle that others hold |
//! | `driver` | the task behind it, which owns the `libp2p::Swarm` |
//! | `behaviour` | transports and protocols, put together |
//! | `links` | the libp2p protocol by which links are opened and accepted |
//! | `link` | frames on an open link |
//! | `local` | links within a machine |
//! | `passing` | what a relay passes on, within its limits |
//! | `probe` | what a system says of ports that no process holds |
//! | `punching` | direct connections between those who met by a relay |
//! | `reachability` | whether others can come in |
//! | `swarm_key`, `invite` | the secret of a private swarm, and how others come by it |
//! | `address` | which addresses to tell and to try first |

#![warn(missing_docs)]

mod address;
mod behaviour;
mod config;
mod driver;
mod error;
mod identity;
mod invite;
mod link;
mod links;
#[cfg_attr(not(target_os = "linux"), path = "local/elsewhere.rs")]
mod local;
mod network;
mod passing;
mod probe;
mod punching;
mod rates;
mod reachability;
mod swarm_key;
mod way;

pub use address::{named_peer, relayed_by};
pub use config::{NetworkConfig, Reach, RelayLimits, Role};
pub use error::{
    AcceptError, AddressFailure, JoinError, OpenLinkError, ReceiveError, SendError,
    StartNetworkError,
};
pub use identity::{Identity, LoadIdentityError};
pub use invite::{INVITE_PREFIX, InvalidInvite, Invite, NoWayIn};
pub use libp2p::{Multiaddr, multiaddr};
pub use link::{Link, LinkReceiver, LinkSender};
pub use links::Incoming;
pub use network::Network;
pub use rates::{RateLimits, Traffic};
pub use reachability::{Reachability, Standing, Verdict};
pub use swarm_key::{SwarmKey, SwarmKeyError};
pub use umbel_protocol::LinkProtocol;
pub use way::{DifferentSwarms, InvalidAddress, InvalidJoin, Join, Way, parse_address};
