//! Asking a peer whom it knows, and telling it who one is.

use std::time::Duration;

use umbel_net::{
    Link, LinkProtocol, LinkReceiver, LinkSender, Multiaddr, Network, OpenLinkError, ReceiveError,
    SendError,
};
use umbel_protocol::announcement::SignedAnnouncement;
use umbel_protocol::directory::{DirectoryAnswer, DirectoryRequest};
use umbel_protocol::error::ProtocolViolation;
use umbel_protocol::{Frame, ModelId, PeerId};

/// How long a peer may take to answer, dialling included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Announcements as they were signed.
pub type Found = Vec<SignedAnnouncement>;

/// Asks `peer` which servers of `model`, or of any model, it knows.
///
/// # Errors
/// [`AskError`] where it cannot be reached, does not answer in time, or breaks the protocol.
pub async fn lookup(
    network: &Network,
    peer: PeerId,
    addresses: &[String],
    model: Option<ModelId>,
) -> Result<Found, AskError> {
    match ask(network, peer, addresses, DirectoryRequest::Lookup { model }).await? {
        DirectoryAnswer::Found(announcements) => Ok(announcements),
        DirectoryAnswer::Announced => Err(AskError::Mismatch),
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
) -> Result<(), AskError> {
    match ask(network, peer, addresses, DirectoryRequest::Announce(announcement)).await? {
        DirectoryAnswer::Announced => Ok(()),
        DirectoryAnswer::Found(_) => Err(AskError::Mismatch),
    }
}

/// The addresses among `texts`; what is no multiaddress is passed over.
#[must_use]
pub fn multiaddrs(texts: &[String]) -> Vec<Multiaddr> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

async fn ask(
    network: &Network,
    peer: PeerId,
    addresses: &[String],
    request: DirectoryRequest,
) -> Result<DirectoryAnswer, AskError> {
    let exchange = async {
        let link = network.open_link(peer, &multiaddrs(addresses), LinkProtocol::Directory).await?;
        let frame = Asking::on(link).ask(request.encode(), ANSWER_TIMEOUT).await?;
        Ok(DirectoryAnswer::decode(frame)?)
    };
    let timed_out = AskError::TimedOut { after: ANSWER_TIMEOUT };
    tokio::time::timeout(ANSWER_TIMEOUT, exchange).await.unwrap_or(Err(timed_out))
}

/// A link on which one side asks and the other answers.
pub(crate) struct Asking {
    sender: LinkSender,
    receiver: LinkReceiver,
}

impl Asking {
    /// Asks on this link.
    pub(crate) fn on(link: Link) -> Self {
        let (sender, receiver) = link.split();
        Self { sender, receiver }
    }

    /// The answer to one question.
    ///
    /// # Errors
    /// [`AskError`] where the link breaks, or it takes too long.
    pub(crate) async fn ask(
        &mut self,
        question: Frame,
        within: Duration,
    ) -> Result<Frame, AskError> {
        let exchange = async {
            self.sender.send(question).await?;
            self.receiver.receive().await?.ok_or(AskError::NoAnswer)
        };
        let timed_out = AskError::TimedOut { after: within };
        tokio::time::timeout(within, exchange).await.unwrap_or(Err(timed_out))
    }
}

/// A peer that did not answer what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
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
