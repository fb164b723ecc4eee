//! Coming into a swarm as a peer to which others open links.

use umbel_net::{
    AcceptError, Incoming, JoinError, LinkProtocol, Multiaddr, Network, NetworkConfig,
    StartNetworkError,
};
use umbel_protocol::PeerId;

/// A peer that has come in.
pub(crate) struct Entered {
    pub(crate) network: Network,
    /// The links that others open.
    pub(crate) incoming: Incoming,
    /// Those at the addresses by which it came.
    pub(crate) met: Vec<PeerId>,
}

/// Starts a peer that accepts links of one protocol, and joins the others at `join`; where there is no
/// address, it waits for others to join it.
///
/// # Errors
/// [`EnterError`] where the network cannot be started, or nobody answers.
pub(crate) async fn enter(
    config: NetworkConfig,
    join: &[Multiaddr],
    protocol: LinkProtocol,
) -> Result<Entered, EnterError> {
    let network = Network::start(config).await?;
    let incoming = network.accept(protocol)?;
    let met = if join.is_empty() { Vec::new() } else { network.join(join).await? };
    Ok(Entered { network, incoming, met })
}

/// No way in.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// The network could not be started.
    #[error(transparent)]
    Start(#[from] StartNetworkError),
    /// Nobody answers.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// Such links are accepted elsewhere already.
    #[error(transparent)]
    Accept(#[from] AcceptError),
}
