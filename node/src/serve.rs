//! A server from start to stop: join, choose blocks, load them, announce, serve, move, leave.

mod attached;
mod balance;
mod begin;
pub(crate) mod control;
pub(crate) mod each;
mod keeping;
mod loading;
mod memory;
mod reach;
pub mod rest;
mod sockets;

use std::io::Write as _;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures::future::join;
use tokio::sync::{Notify, watch};
use umbel_client::SwarmConfig;
use umbel_coordinator::server::{AdapterRoom, Server, ServerConfig};
use umbel_coordinator::swarm::placement::{Intention, thinnest_span};
use umbel_engine::{Arithmetic, Device, Gpu};
use umbel_net::{Identity, LoadIdentityError, Multiaddr, Network, SwarmKey, Way};
use umbel_protocol::announcement::{Announcement, Throughput};
use umbel_protocol::{PeerId, Span};
use umbel_shard::{Model, ModelSource, PartsNeeded};

use crate::announce::{Announcer, Offer};
use crate::args::{RestArguments, ServeArguments};
use crate::compute::floor::Floor;
use crate::compute::{Compute, Shard, Shards};
use crate::config::Config;
use crate::device::{self, DeviceWish};
use crate::driver::{Driver, Events, Load};
use crate::shutdown::Shutdown;
use crate::training::{self, TrainingDriver};
use attached::Attached;
use balance::Balancer;
use control::Control;
use keeping::Keeper;
use loading::{Held, Loaded, Loader};
pub(crate) use memory::GPU_WORKSPACE_BYTES;
use sockets::Sockets;

/// Servers of one user on one machine, and publishers likewise, that find an identity without being given one.
const IDENTITIES_MAX: usize = 64;

/// Serves until a signal, and prints `ready MULTIADDR` once it does.
///
/// # Errors
/// Where the model, the network or the memory does not allow it.
pub async fn serve(arguments: ServeArguments, config: &Config) -> anyhow::Result<()> {
    let mut stop = Stop::listen(&arguments)?;
    let drain_timeout = Duration::from_secs(arguments.drain_timeout.into());
    let mut sockets = Sockets::bind(&arguments).await?;
    let source = ModelSource::parse(arguments.model.name())?;
    let mut begun = None;
    let serving = tokio::select! {
        serving = Serving::start(arguments, config, &mut begun) => serving.map(Some),
        () = stop.requested() => Ok(None),
    };
    let serving = match serving {
        Ok(Some(serving)) => serving,
        failed_or_stopped => {
            if let Some((announcer, offer)) = begun {
                let last = offer.borrow().clone();
                begin::take_back(&announcer, last).await;
            }
            return failed_or_stopped.map(drop);
        }
    };
    let Serving {
        network,
        announcer,
        offer,
        driver,
        training,
        mut balancer,
        swarm_key,
        lost,
        control,
    } = serving;
    let load = driver.load();
    sockets.measure(&driver, &offer, (training.waits(), &network));
    tokio::spawn(memory::give_back(load.clone()));
    let mut driving = tokio::spawn(driver.run());
    let mut training = tokio::spawn(training.run());
    let mut attached = None;
    {
        let announced = offer.subscribe();
        let announcing = announce_and_say_so(&announcer, announced, &load, &network, |at| {
            let join = SwarmConfig { join: vec![at], swarm_key, ..SwarmConfig::default() };
            attached = sockets.attach(source, (network.peer_id(), join), config);
        });
        tokio::select! {
            () = announcing => {}
            result = &mut driving => result.context("the server's own task failed")??,
            result = &mut training => result.context("the task of the trainings failed")??,
            () = balancer.run(&announcer, &offer, control.pauses().subscribe()) => {}
            // Clients go elsewhere as soon as their links close.
            () = lost.notified() => {
                bail!("the GPU is lost to this process: look for its errors in the system's log, \
                       and start again");
            }
            () = stop.requested() => {}
        }
    }
    let load = *load.borrow();
    tokio::select! {
        () = leave(&announcer, (&offer, load), &mut balancer, (&mut attached, drain_timeout)) => {}
        () = stop.requested() => {}
    }
    drop(attached);
    driving.abort();
    training.abort();
    network.shutdown().await;
    Ok(())
}

/// Says to all that this server leaves, so that who comes from now on goes elsewhere, and waits until the
/// gateway has ended its answers and the sessions have moved, for so long at most.
async fn leave(
    announcer: &Announcer,
    (offer, load): (&watch::Sender<Offer>, Load),
    balancer: &mut Balancer,
    (attached, drain_timeout): (&mut Option<Attached>, Duration),
) {
    let had_left = offer.borrow().draining;
    offer.send_modify(|offer| {
        offer.draining = true;
        offer.intention = Intention::default();
    });
    let leaving = offer.borrow().clone();
    let left = async {
        balancer.drain_trainings().await;
        // Of requests that were let in some have sessions still to open, and nobody else may serve these
        // blocks.
        Attached::stop(attached, !had_left).await;
        balancer.handle().drain().await;
        if tokio::time::timeout(drain_timeout, balancer.drained()).await.is_err() {
            tracing::warn!("sessions were still open: nobody else serves their blocks");
        }
    };
    join(announcer.announce(&leaving, load), left).await;
}

/// What ends a server.
struct Stop {
    signals: Shutdown,
    stdin: std::pin::Pin<Box<dyn Future<Output = ()> + Send>>,
}

impl Stop {
    fn listen(arguments: &ServeArguments) -> anyhow::Result<Self> {
        Ok(Self {
            signals: Shutdown::listen().context("signals cannot be caught")?,
            stdin: Box::pin(stdin_closed(arguments.stop_with_stdin)),
        })
    }

    /// Waits for the next signal, or for the end of stdin where nothing has asked before.
    async fn requested(&mut self) {
        tokio::select! {
            signal = self.signals.requested() => tracing::info!(%signal, "stopping"),
            () = &mut self.stdin => tracing::info!("stopping, as stdin has closed"),
        }
        // Where a signal goes to a whole group, whoever holds stdin stops too and closes it: that asks for
        // no more haste than the signal did.
        self.stdin = Box::pin(std::future::pending());
    }
}

/// Announces the server, prints its address, and announces it again and again.
async fn announce_and_say_so(
    announcer: &Announcer,
    offer: watch::Receiver<Offer>,
    load: &watch::Receiver<Load>,
    network: &Network,
    announced: impl FnOnce(Multiaddr),
) {
    // Who reads the line may ask any peer at once, and that peer shall know of this server.
    let (current, first) = (offer.borrow().clone(), *load.borrow());
    announcer.announce(&current, first).await;
    if let Err(error) = writeln!(std::io::stdout(), "ready {}", network.preferred_address()) {
        tracing::warn!(%error, "nobody reads stdout");
    }
    announced(network.preferred_address());
    announcer.clone().run(offer, load.clone()).await;
}

/// A server that is ready to serve.
struct Serving {
    network: Network,
    announcer: Announcer,
    offer: watch::Sender<Offer>,
    driver: Driver,
    training: TrainingDriver,
    balancer: Balancer,
    lost: Arc<Notify>,
    swarm_key: Option<SwarmKey>,
    control: Control,
}

impl Serving {
    /// Loads the blocks, and notes in `begun` what was announced of them before they are there.
    async fn start(
        arguments: ServeArguments,
        config: &Config,
        begun: &mut Option<(Announcer, watch::Receiver<Offer>)>,
    ) -> anyhow::Result<Self> {
        let source = ModelSource::parse(arguments.model.name())?;
        let (announcer, swarm_key, control) = enter(&arguments, config).await?;
        let network = announcer.network().clone();

        let gpu = choose_gpu(&arguments, config)?;
        let model = loading::open(&source, config, PartsNeeded::nothing()).await?;
        let (gpu, budget) = with_room(&arguments, &model, gpu)?;
        let loader = Loader {
            source,
            model: model.id(),
            config: config.clone(),
            gpu,
            head_on_gpu: budget.head_on_gpu,
            ends_of: (!arguments.no_ends).then_some(model.config().block_count),
            network_rate: network_rate(&arguments.rest),
        };
        let sizes = memory::BlockSizes::new(&model, loader.gpu.as_ref());
        let (offer, kv_tokens, shard) =
            load_first(&arguments, &sizes, &announcer, &loader, (budget.blocks, begun)).await?;
        let (peer, span) = (network.peer_id(), offer.borrow().span);

        if let Some(bytes_max) = arguments.rest.keep_adapters {
            let folder = config.cache_dir.join("kept-adapters").join(peer.to_string());
            let (network, model) = (network.clone(), model.config().clone());
            Keeper::start(&folder, bytes_max.get(), network, model).await?;
        }
        let held = Held {
            spans: vec![shard.blocks.clone()],
            arena: shard.arena.clone(),
            ends: shard.ends.clone(),
        };
        let held_max = sizes.held_max(span.block_count(), kv_tokens, budget.blocks);
        let adapters = adapter_room(&model, budget.adapters);
        let config = server_config(&arguments, &model, peer, &shard, kv_tokens, adapters)?;
        let server = Server::new(config);
        let events = Events::new();
        let (completion, handle) = (events.completion(), events.handle());
        let floor = Floor::default();
        let can_train = shard.blocks.can_train();
        let device = shard.blocks.gpu().is_none().then(Device::shared);
        let blocks = shard.blocks.clone();
        let (shards, lost) = Shards::new(shard, floor.clone());
        let (training, trainings) = TrainingDriver::new(
            (&model, blocks),
            network.clone(),
            (floor.clone(), Arc::clone(&lost)),
            budget.trainings,
        );
        let shards = floor.before(shards);
        let compute = Compute::start(shards, move |done| completion.done(done));
        let (driver, drained) = Driver::new(server, network.clone(), compute, events);
        let driver = driver.adapting(model.config().clone()).rousing(device);
        let mut balancer =
            Balancer::new(peer, &arguments, &model, (held, held_max), loader, (handle, drained));
        match can_train {
            Ok(()) => balancer = balancer.with(trainings),
            Err(reason) => {
                tracing::info!(%reason, "the GPU has no kernels to train this model; others will");
                // The balancer would have trainings open again on the blocks that it moves to.
                trainings.drain().await;
            }
        }
        Ok(Self { network, announcer, offer, driver, training, balancer, swarm_key, lost, control })
    }
}

/// Bytes a second that links may take; 0 where that is not limited.
fn network_rate(arguments: &RestArguments) -> u64 {
    let limits = [arguments.upload_limit, arguments.download_limit];
    limits.into_iter().flatten().min().map_or(0, NonZeroU64::get)
}

fn choose_gpu(arguments: &ServeArguments, config: &Config) -> anyhow::Result<Option<Gpu>> {
    let gpu = device::choose(arguments.device)?;
    if gpu.is_some() && config.arithmetic != Arithmetic::Usual {
        tracing::warn!("--arithmetic is for processors; a GPU rounds as it always does");
    }
    Ok(gpu)
}

/// What each thing may take, and the GPU where it may: the processor computes where the GPU that was found
/// has no room for one block, unless it was asked for.
fn with_room(
    arguments: &ServeArguments,
    model: &Model,
    gpu: Option<Gpu>,
) -> anyhow::Result<(Option<Gpu>, Budget)> {
    let budget = Budget::new(arguments, model, gpu.as_ref())?;
    if gpu.is_none() || arguments.device != DeviceWish::Auto {
        return Ok((gpu, budget));
    }
    let is_chosen = arguments.blocks.is_some() || arguments.block_count.is_some();
    let sizes = memory::BlockSizes::new(model, gpu.as_ref());
    match sizes.check_one(is_chosen, arguments.kv_tokens, budget.blocks) {
        Ok(()) => Ok((gpu, budget)),
        Err(reason) => {
            tracing::warn!(%reason, "computing on the processor");
            Ok((None, Budget::new(arguments, model, None)?))
        }
    }
}

fn say_loaded(model: &Model, span: Span, kv_tokens: usize, throughput: Throughput) {
    tracing::info!(
        model = model.name(),
        blocks = %span,
        of = model.config().block_count,
        kv_tokens,
        decode = throughput.decode_tokens_per_second,
        prefill = throughput.prefill_tokens_per_second,
        "loaded"
    );
}

fn adapter_room(model: &Model, bytes_max: u64) -> AdapterRoom {
    AdapterRoom {
        bytes_max,
        module_shapes: training::module_shapes(model.config()),
        hidden_size: model.config().hidden_size as u64,
    }
}

fn server_config(
    arguments: &ServeArguments,
    model: &Model,
    peer: PeerId,
    shard: &Shard,
    kv_tokens: usize,
    adapters: AdapterRoom,
) -> anyhow::Result<ServerConfig> {
    let config = model.config();
    let vocabulary_size = u32::try_from(config.vocabulary_size)?;
    Ok(ServerConfig {
        peer,
        model: model.id(),
        span: shard.blocks.span(),
        block_count: config.block_count,
        vocabulary_size: (!arguments.no_ends).then_some(vocabulary_size),
        hidden_size: u32::try_from(config.hidden_size)?,
        head_size: u32::try_from(config.head_size)?,
        context_tokens: u32::try_from(config.context_tokens)?,
        kv_tokens_max: u32::try_from(kv_tokens)?,
        cache: shard.arena.shared_pages(),
        journal_bytes_max: memory::journal_bytes()?,
        keeps_pages: !arguments.no_share,
        adapters: Some(adapters),
    })
}

/// Comes into the swarm, and learns who else is in it; gives the secret of one that is private, too.
async fn enter(
    arguments: &ServeArguments,
    config: &Config,
) -> anyhow::Result<(Announcer, Option<SwarmKey>, Control)> {
    let named = arguments.identity.as_deref();
    let (identity, file) = identity(named, &config.data_dir, "identity")?;
    let control = Control::listen(&file);
    rest::keep(&arguments.rest, control.pauses())?;
    let named = arguments.swarm.as_deref().map(SwarmKey::load).transpose()?;
    let Way { mut addresses, swarm_key } = Way::new(&arguments.join, named)?;
    addresses.extend_from_slice(&arguments.beside);
    let network = reach::start_network(arguments, identity, swarm_key.clone()).await?;
    let announcer = Announcer::new(network, &addresses);
    tokio::spawn(announcer.clone().answer());
    if let Err(error) = announcer.join().await {
        // Of servers that name each other one is the first, and a network may be up later than a machine.
        if !error.may_pass() {
            return Err(error.into());
        }
        tracing::warn!(%error, "nobody is there yet: this server begins, and goes on trying");
    }
    if arguments.blocks.is_none() && reach::finds_neighbours(arguments, announcer.network()) {
        announcer.meet_neighbours().await;
    }
    tokio::select! {
        placed = reach::await_place(arguments, announcer.network()) => placed?,
        // Whoever gives a place may be one of those who were not there yet.
        () = announcer.stay() => {}
    }
    Ok((announcer, swarm_key, control))
}

/// The identity in the named file, or the first of the user's own of this kind that no running process has,
/// and its file.
pub(crate) fn identity(
    named: Option<&Path>,
    data_dir: &Path,
    kind: &str,
) -> anyhow::Result<(Identity, PathBuf)> {
    if let Some(path) = named {
        return Ok((Identity::load_or_create(path)?, path.to_owned()));
    }
    for number in 1..=IDENTITIES_MAX {
        let suffix = if number == 1 { String::new() } else { format!("-{number}") };
        let path = data_dir.join(format!("{kind}{suffix}.pem"));
        match Identity::load_or_create(&path) {
            Err(LoadIdentityError::InUse { .. }) => {}
            result => return Ok((result?, path)),
        }
    }
    bail!("{IDENTITIES_MAX} identities of this user are in use: name a file with --identity")
}

/// What each thing may take of the memory where it is.
struct Budget {
    /// Blocks, keys and values.
    blocks: u64,
    /// The adapters with which others ask.
    adapters: u64,
    /// What others train.
    trainings: u64,
    /// Whether the head has its place on the GPU beside them.
    head_on_gpu: bool,
}

impl Budget {
    fn new(arguments: &ServeArguments, model: &Model, gpu: Option<&Gpu>) -> anyhow::Result<Self> {
        let (first, last) = touched_ends(arguments, model);
        if let Some(gpu) = gpu {
            let bytes = memory::allowed_bytes_of(gpu, arguments.memory_bytes)?;
            // Each GPU of the machine may have a server.
            let of_processor = memory::allowed_bytes(None)? / Gpu::count()?.max(1) as u64;
            return Ok(Self::on_gpu((bytes, of_processor), model, last));
        }
        let ends = memory::ends_bytes(model, first, last);
        let blocks = memory::allowed_bytes(arguments.memory_bytes)?.saturating_sub(ends);
        let (adapters, trainings) = (memory::adapter_bytes(blocks), memory::training_bytes(blocks));
        Ok(Self { blocks, adapters, trainings, head_on_gpu: false })
    }

    /// The embedding, of which few rows are read, is the processor's, as the states of trainings are. So
    /// are the values of adapters, which are on the GPU as well.
    fn on_gpu((bytes, of_processor): (u64, u64), model: &Model, last: bool) -> Self {
        let of_gpu = memory::adapter_bytes_of_gpu(bytes);
        let adapters = of_gpu.min(memory::adapter_bytes(of_processor));
        let trainings = memory::training_bytes(of_processor);
        let budget = Self { blocks: bytes - of_gpu, adapters, trainings, head_on_gpu: true };
        if !last {
            return budget;
        }
        let Some(head) = memory::head_bytes_of_gpu(model, budget.blocks) else {
            tracing::info!(
                allowed_mb = bytes / 1_000_000,
                "the model's head is too large for the GPU: the processor draws the tokens of thin \
                 sessions"
            );
            return Self { head_on_gpu: false, ..budget };
        };
        tracing::info!(head_mb = head / 1_000_000, "room on the GPU is kept for the model's head");
        Self { blocks: budget.blocks - head, ..budget }
    }
}

/// Whether the blocks touch the first and the last end of the model, or may do so once they are chosen.
fn touched_ends(arguments: &ServeArguments, model: &Model) -> (bool, bool) {
    let block_count = model.config().block_count;
    let touches = |at_end: fn(Span, u32) -> bool| {
        !arguments.no_ends && arguments.blocks.is_none_or(|span| at_end(span, block_count))
    };
    (touches(|span, _| span.start() == 0), touches(|span, of| span.end() == of))
}

/// Chooses blocks and loads them, while the others hear that they will be served; what it says of itself
/// then, and room for how many tokens there is.
async fn load_first(
    arguments: &ServeArguments,
    sizes: &memory::BlockSizes<'_>,
    announcer: &Announcer,
    loader: &Loader,
    (free_bytes, begun): (u64, &mut Option<(Announcer, watch::Receiver<Offer>)>),
) -> anyhow::Result<(watch::Sender<Offer>, usize, Shard)> {
    let (model, own) = (sizes.model(), announcer.network().peer_id());
    let choose = |servers: &[Announcement]| choose(arguments, sizes, (own, servers), free_bytes);
    if arguments.blocks.is_none() {
        // What was heard on coming in may be half a minute old.
        announcer.catch_up().await;
    }
    let known = announcer.servers(model.id());
    let (span, kv_tokens) = choose(&known)?;
    let offer = watch::Sender::new(begin::beginning(Offer {
        model: model.id(),
        model_name: model.name().to_owned(),
        span,
        block_count: model.config().block_count,
        throughput: Throughput::default(),
        intention: Intention::default(),
        draining: false,
        holds_ends: !arguments.no_ends,
    }));
    *begun = Some((announcer.clone(), offer.subscribe()));
    let mut chosen_again = None;
    if arguments.blocks.is_none() && span.block_count() < model.config().block_count {
        chosen_again = begin::beside_others(announcer, &offer, known, choose).await;
    }
    let (span, kv_tokens) = (offer.borrow().span, chosen_again.unwrap_or(kv_tokens));
    let loading = loader.load(span, kv_tokens);
    let Loaded { shard, throughput } =
        begin::while_announcing(announcer, &offer, begin::LOADING_MAX, loading).await?;
    begin::serving(&offer, throughput);
    say_loaded(model, span, kv_tokens, throughput);
    Ok((offer, kv_tokens, shard))
}

/// Which blocks to serve beside these servers, and room for how many tokens.
fn choose(
    arguments: &ServeArguments,
    sizes: &memory::BlockSizes<'_>,
    (own, servers): (PeerId, &[Announcement]),
    free_bytes: u64,
) -> anyhow::Result<(Span, usize)> {
    let (block_count, kv_tokens) = (sizes.model().config().block_count, arguments.kv_tokens);
    let with_cache = |span| {
        let tokens = sizes.kv_tokens(span, kv_tokens, free_bytes);
        if arguments.memory_bytes.is_some() {
            sizes.check(span, tokens, free_bytes)?;
        }
        Ok((span, tokens))
    };
    if let Some(span) = arguments.blocks {
        if span.end() > block_count {
            bail!("the model has blocks 0..{block_count}; {span} goes beyond them");
        }
        return with_cache(span);
    }
    let count = match arguments.block_count {
        Some(count) if count > block_count => {
            bail!("the model has {block_count} blocks; {count} are more")
        }
        Some(count) => count,
        None => sizes.that_fit(kv_tokens, free_bytes)?,
    };
    let span = thinnest_span(block_count, count, own, servers);
    with_cache(span.context("the model has no blocks")?)
}

/// Waits until whoever holds the other end of stdin is gone, if that is asked for.
async fn stdin_closed(asked: bool) {
    if !asked {
        return std::future::pending().await;
    }
    let (closed, wait) = tokio::sync::oneshot::channel::<()>();
    // A thread of its own, which ends with the process: a read of stdin cannot be given up.
    std::thread::spawn(move || {
        let _until_its_end = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        drop(closed);
    });
    let _closed = wait.await;
}
