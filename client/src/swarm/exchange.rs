//! Asking a peer whom it knows, and telling it who one is.

use std::time::Duration;

use umbel_net::{LinkProtocol, Multiaddr, Network, OpenLinkError, ReceiveError, SendError};
use umbel_protocol::announcement::SignedAnnouncement;
use umbel_protocol::directory::{DirectoryAnswer, DirectoryRequest};
use umbel_protocol::error::ProtocolViolation;
use umbel_protocol::{ModelId, PeerId};

/// How long a peer may take to answer, dialling included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Announcements as they were signed.
pub type Found = Vec<SignedAnnouncement>;

/// Asks `peer` which servers of `model`, or of any model, it knows.
///
/// # Errors
/// [`LookupError`] where it cannot be reached, does not answer in time, or breaks the protocol.
pub async fn lookup(
    network: &Network,
    peer: PeerId,
    addresses: &[String],
    model: Option<ModelId>,
) -> Result<Found, LookupError> {
    match ask(network, peer, addresses, DirectoryRequest::Lookup { model }).await? {
        DirectoryAnswer::Found(announcements) => Ok(announcements),
        DirectoryAnswer::Announced => Err(LookupError::Mismatch),
    }
}

/// Tells `peer` of a server.
///
/// # Errors
/// As [`lookup`].
pub async fn announce(
    network: &Network,
    peer: PeerId,
    addresses: &[String],
    announcement: SignedAnnouncement,
) -> Result<(), LookupError> {
    match ask(network, peer, addresses, DirectoryRequest::Announce(announcement)).await? {
        DirectoryAnswer::Announced => Ok(()),
        DirectoryAnswer::Found(_) => Err(LookupError::Mismatch),
    }
}

/// The addresses among `texts`; what is no multiaddress is passed over.
#[must_use]
pub fn multiaddrs(texts: &[String]) -> Vec<Multiaddr> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

/// An error and its causes in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

async fn ask(
    network: &Network,
    peer: PeerId,
    addresses: &[String],
    request: DirectoryRequest,
) -> Result<DirectoryAnswer, LookupError> {
    let exchange = async {
        let link = network.open_link(peer, &multiaddrs(addresses), LinkProtocol::Directory).await?;
        let (mut sender, mut receiver) = link.split();
        sender.send(request.encode()).await?;
        let frame = receiver.receive().await?.ok_or(LookupError::NoAnswer)?;
        Ok(DirectoryAnswer::decode(frame)?)
    };
    tokio::time::timeout(ANSWER_TIMEOUT, exchange)
        .await
        .unwrap_or(Err(LookupError::TimedOut { after: ANSWER_TIMEOUT }))
}

/// A peer that did not answer.
#[derive(Debug, thiserror::Error)]
pub enum LookupError {
    /// It cannot be reached.
    #[error(transparent)]
    Link(#[from] OpenLinkError),
    /// The link broke while the question was sent.
    #[error(transparent)]
    Send(#[from] SendError),
    /// The link broke, or what came over it is no frame.
    #[error(transparent)]
    Receive(#[from] ReceiveError),
    /// It closed the link instead.
    #[error("the peer closed the link without an answer")]
    NoAnswer,
    /// It took too long.
    #[error("the peer did not answer within {} s", after.as_secs())]
    TimedOut {
        /// How long it was given.
        after: Duration,
    },
    /// Its answer is malformed.
    #[error(transparent)]
    Violation(#[from] ProtocolViolation),
    /// Its answer is to another question.
    #[error("the peer answered another question")]
    Mismatch,
}
