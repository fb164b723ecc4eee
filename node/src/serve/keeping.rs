//! Adapters that a server keeps for those who published them (`--keep-adapters`), and provides.
//!
//! `coordinator::shelf` decides what stays; here are the files and the links. What lies on the disk is
//! checked against its name whenever it is read.

mod files;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::timeout;
use umbel_client::adapter::publish::Provided;
use umbel_coordinator::shelf::{Offered, Shelf};
use umbel_engine::train::{Adapter, PeftFiles};
use umbel_net::{Link, LinkProtocol, LinkReceiver, LinkSender, Network};
use umbel_protocol::published::{AdapterAnswer, AdapterRequest, KeepAdapter, KeepRefusal, Keeping};
use umbel_protocol::{AdapterId, PeerId, ProtocolViolation, Span};
use umbel_shard::ModelConfig;

use crate::links::Room;
use files::Files;

/// Links that are served at once.
const LINKS_MAX: usize = 32;

/// Those of one peer, which fetches an adapter over one link: a gateway may want some at once.
const LINKS_OF_PEER_MAX: usize = LINKS_MAX / 4;

/// How long a link may stay silent.
const SILENCE_MAX: Duration = Duration::from_secs(60);

/// How long one adapter may take to come, whose room nobody else has meanwhile: 64 MB at 1 Mbit/s.
const COMING_MAX: Duration = Duration::from_secs(600);

/// What is kept, and for whom.
pub(super) struct Keeper {
    network: Network,
    model: ModelConfig,
    files: Files,
    shelf: Mutex<Shelf>,
    /// Those that are being sent, each in memory once.
    sent: Mutex<BTreeMap<AdapterId, Weak<Provided>>>,
}

impl Keeper {
    /// Takes up what lies in a folder, provides it, and takes more in, until the server ends.
    pub(super) async fn start(
        folder: &Path,
        bytes_max: u64,
        network: Network,
        model: ModelConfig,
    ) -> anyhow::Result<()> {
        let files = Files::new(folder);
        let files = files.with_context(|| format!("--keep-adapters: {}", folder.display()))?;
        let incoming = network.accept(LinkProtocol::Adapter)?;
        let mut shelf = Shelf::new(bytes_max);
        let kept = files.kept();
        let left = shelf.restore(kept.clone());
        for id in kept.into_iter().map(|kept| kept.id) {
            if left.contains(&id) {
                tracing::info!(%id, "an adapter is kept no more");
                files.remove(id);
            } else {
                network.provide(*id.as_bytes()).await;
            }
        }
        let (shelf, sent) = (Mutex::new(shelf), Mutex::default());
        let keeper = Arc::new(Self { network, model, files, shelf, sent });
        let room = Room::new(LINKS_MAX, LINKS_OF_PEER_MAX);
        tokio::spawn(room.serve_each(incoming, move |peer, link| {
            let keeper = Arc::clone(&keeper);
            async move {
                if let Err(violation) = keeper.answer_link(peer, link).await {
                    tracing::warn!(%peer, %violation, "closing a link of adapters");
                }
            }
        }));
        Ok(())
    }

    async fn answer_link(&self, peer: PeerId, link: Link) -> Result<(), ProtocolViolation> {
        let (mut sender, mut receiver) = link.split();
        let mut asked: Option<Arc<Provided>> = None;
        while let Some(request) = next(&mut receiver).await? {
            let answer = match request {
                AdapterRequest::Part { id, offset } => {
                    if asked.as_ref().is_none_or(|asked| asked.id() != id) {
                        asked = self.provided(id, peer).await;
                    }
                    asked.as_ref().map_or(AdapterAnswer::Unknown, |asked| asked.part(offset))
                }
                AdapterRequest::Keep(offer) => {
                    let coming = Coming { keeper: self, peer, id: offer.id, taken: false };
                    let came = coming.take(offer, &mut sender, &mut receiver);
                    match timeout(COMING_MAX, came).await {
                        Ok(keeping) => AdapterAnswer::Keeping(keeping?),
                        Err(_) => return Ok(()),
                    }
                }
            };
            if !sender.send_within(answer.encode(), SILENCE_MAX).await {
                break;
            }
        }
        Ok(())
    }

    /// One that is kept and is what its name says.
    async fn provided(&self, id: AdapterId, by: PeerId) -> Option<Arc<Provided>> {
        if !self.shelf().has(id) {
            return None;
        }
        let wanted = self.shelf().asked(id, by);
        self.files.note_used(id, wanted);
        if let Some(sent) = self.sent().get(&id).and_then(Weak::upgrade) {
            return Some(sent);
        }
        let read = self.files.read(id, self.model.clone()).await;
        let Some(files) = read else {
            tracing::warn!(%id, "an adapter on the disk is not what it was, and is kept no more");
            self.drop_all(&[id]).await;
            self.shelf().failed(id);
            return None;
        };
        let provided = Arc::new(Provided::new(files));
        let mut sent = self.sent();
        sent.retain(|_, sent| sent.strong_count() > 0);
        sent.insert(id, Arc::downgrade(&provided));
        Some(provided)
    }

    async fn drop_all(&self, dropped: &[AdapterId]) {
        for id in dropped {
            tracing::info!(%id, "an adapter is kept no more");
            self.network.stop_providing(*id.as_bytes()).await;
            self.files.remove(*id);
        }
    }

    /// Whether these are the files of an adapter of this model.
    async fn fits(&self, files: &PeftFiles) -> bool {
        let (files, model) = (files.clone(), self.model.clone());
        let fits = tokio::task::spawn_blocking(move || {
            let all = Span::new(0, model.block_count).ok()?;
            Adapter::from_peft(&files, &model, all).ok()
        });
        fits.await.expect("reading an adapter does not panic").is_some()
    }

    fn shelf(&self) -> MutexGuard<'_, Shelf> {
        self.shelf.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sent(&self) -> MutexGuard<'_, BTreeMap<AdapterId, Weak<Provided>>> {
        self.sent.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An adapter on its way. Where it does not come, its room is given back.
struct Coming<'a> {
    keeper: &'a Keeper,
    peer: PeerId,
    id: AdapterId,
    taken: bool,
}

impl Drop for Coming<'_> {
    fn drop(&mut self) {
        if self.taken {
            self.keeper.shelf().failed(self.id);
        }
    }
}

/// Why an adapter does not come.
enum Ended {
    Refused(KeepRefusal),
    Violation(ProtocolViolation),
}

impl From<KeepRefusal> for Ended {
    fn from(why: KeepRefusal) -> Self {
        Self::Refused(why)
    }
}

impl From<ProtocolViolation> for Ended {
    fn from(violation: ProtocolViolation) -> Self {
        Self::Violation(violation)
    }
}

impl Coming<'_> {
    /// Asks for the bytes of what is offered, and keeps it.
    async fn take(
        mut self,
        offer: KeepAdapter,
        sender: &mut LinkSender,
        receiver: &mut LinkReceiver,
    ) -> Result<Keeping, ProtocolViolation> {
        match self.try_take(offer, sender, receiver).await {
            Ok(()) => Ok(Keeping::Kept),
            Err(Ended::Refused(why)) => Ok(Keeping::Refused(why)),
            Err(Ended::Violation(violation)) => Err(violation),
        }
    }

    async fn try_take(
        &mut self,
        offer: KeepAdapter,
        sender: &mut LinkSender,
        receiver: &mut LinkReceiver,
    ) -> Result<(), Ended> {
        let keeper = self.keeper;
        let total = offer.config_bytes.saturating_add(offer.weights_bytes);
        if offer.config_bytes > PeftFiles::CONFIG_BYTES_MAX {
            return Err(KeepRefusal::TooLarge.into());
        }
        let offered = keeper.shelf().offer(self.peer, self.id, total);
        match offered {
            Offered::Held => {
                keeper.files.note_used(self.id, false);
                return Ok(());
            }
            Offered::Refused(why) => return Err(why.into()),
            Offered::Taken { drop } => {
                self.taken = true;
                keeper.drop_all(&drop).await;
            }
        }
        let files = self.receive(&offer, sender, receiver).await?;
        if files.id() != self.id {
            return Err(KeepRefusal::OtherContent.into());
        }
        if !keeper.fits(&files).await {
            return Err(KeepRefusal::OtherModel.into());
        }
        if let Err(error) = keeper.files.write(files, self.peer).await {
            tracing::warn!(%error, "an adapter cannot be kept");
            return Err(KeepRefusal::Full.into());
        }
        self.taken = false;
        keeper.shelf().came(self.id);
        keeper.network.provide(*self.id.as_bytes()).await;
        tracing::info!(id = %self.id, owner = %self.peer, bytes = total, "keeping an adapter");
        Ok(())
    }

    /// What is offered, as it comes. How large the weights may be follows from the configuration, which comes
    /// first.
    async fn receive(
        &self,
        offer: &KeepAdapter,
        sender: &mut LinkSender,
        receiver: &mut LinkReceiver,
    ) -> Result<PeftFiles, Ended> {
        let total = offer.config_bytes.saturating_add(offer.weights_bytes);
        let config_bytes =
            usize::try_from(offer.config_bytes).map_err(|_| KeepRefusal::TooLarge)?;
        let mut bytes = Vec::new();
        while (bytes.len() as u64) < total {
            let before = bytes.len();
            let offset = before as u64;
            let want = AdapterAnswer::Keeping(Keeping::Send { offset });
            // A link that ends has nobody who hears why.
            if !sender.send_within(want.encode(), SILENCE_MAX).await {
                return Err(KeepRefusal::Full.into());
            }
            let Some(AdapterRequest::Keep(part)) = next(receiver).await? else {
                return Err(KeepRefusal::Full.into());
            };
            let length = part.bytes.len() as u64;
            let is_next = (part.id, part.offset) == (self.id, offset);
            if !is_next || length == 0 || length > total - offset {
                return Err(ProtocolViolation::OutOfBounds { field: "bytes to keep" }.into());
            }
            bytes.extend_from_slice(&part.bytes);
            if (before..bytes.len()).contains(&(config_bytes - 1)) {
                let config = &bytes[..config_bytes];
                let max = PeftFiles::weights_bytes_max(config, &self.keeper.model);
                if offer.weights_bytes > max.map_err(|_| KeepRefusal::OtherModel)? {
                    return Err(KeepRefusal::TooLarge.into());
                }
            }
        }
        let weights = bytes.split_off(config_bytes);
        Ok(PeftFiles { config: bytes, weights })
    }
}

/// The next request; `None` where the link ends or is silent for too long.
async fn next(receiver: &mut LinkReceiver) -> Result<Option<AdapterRequest>, ProtocolViolation> {
    match timeout(SILENCE_MAX, receiver.receive()).await {
        Ok(Ok(Some(frame))) => AdapterRequest::decode(frame).map(Some),
        Ok(Ok(None) | Err(_)) | Err(_) => Ok(None),
    }
}
