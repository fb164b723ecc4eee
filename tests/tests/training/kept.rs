//! Adapters that servers keep for those who published them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bytes::Bytes;
use umbel_client::Swarm;
use umbel_client::adapter::fetch::{FetchAdapterError, fetch};
use umbel_client::adapter::leave::{LeaveError, leave};
use umbel_engine::train::PeftFiles;
use umbel_net::{Identity, Link, LinkProtocol, Network, NetworkConfig, Role};
use umbel_protocol::published::{AdapterAnswer, AdapterRequest, KeepAdapter, KeepRefusal, Keeping};
use umbel_shard::ModelConfig;
use umbel_tests::process::Output;
use umbel_tests::swarm::{Server, checkpoint, serve, umbel};
use umbel_tests::training::join;
use umbel_tests::workload::client_model;

/// How long the hash table may take to know who keeps an adapter.
const KNOWN_TIMEOUT: Duration = Duration::from_secs(60);

fn model() -> ModelConfig {
    client_model(&checkpoint("llama")).unwrap().config().clone()
}

fn folder() -> PathBuf {
    Path::new(&checkpoint("llama")).join("lora")
}

/// The adapter among the fixtures, under as many names as there are numbers: blanks change nothing else.
fn files(number: usize) -> PeftFiles {
    let mut files = PeftFiles::read(&folder(), &model()).unwrap();
    files.config.extend(std::iter::repeat_n(b' ', number));
    files
}

fn bytes(files: &PeftFiles) -> u64 {
    (files.config.len() + files.weights.len()) as u64
}

/// A server with room for so many adapters of one owner, or four times as many of several.
fn keeper(each: u64, cache: &Path, more: &[&str]) -> Server {
    // Blanks are bytes too.
    let room = (4 * each * (bytes(&files(0)) + 200)).to_string();
    let fixed = [&checkpoint("llama"), "--blocks", "0..4", "--keep-adapters", &room, "--cache-dir"];
    serve(&[&fixed[..], &[cache.to_str().unwrap()], more].concat())
}

fn publish(server: &Server, folder: &Path, identity: &Path) -> Output {
    let [folder, identity] = [folder, identity].map(|path| path.to_str().unwrap());
    let join = ["--join", server.address(), "--identity", identity];
    umbel(&[&["adapter", "publish", "--leave", folder][..], &join].concat())
}

/// The names of what is kept by the one server that has this cache.
fn kept(cache: &Path) -> Vec<String> {
    let folder = cache.join("kept-adapters");
    let server = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let names = std::fs::read_dir(server).unwrap();
    let mut names: Vec<_> = names.map(|one| one.unwrap().file_name()).collect();
    names.sort();
    names.into_iter().map(|name| name.into_string().unwrap()).collect()
}

/// Fetches one as soon as it is known who has it.
async fn fetch_known(swarm: &Swarm, files: &PeftFiles) -> bool {
    let (cache, begun) = (tempfile::tempdir().unwrap(), Instant::now());
    while begun.elapsed() < KNOWN_TIMEOUT {
        match fetch(swarm, cache.path(), files.id(), &model()).await {
            Ok(fetched) => return fetched == *files,
            Err(FetchAdapterError::NoProvider { .. }) => {}
            Err(FetchAdapterError::Providers { .. }) => return false,
        }
    }
    false
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_left_outlives_who_published_it_and_a_restart() {
    let cache = tempfile::tempdir().unwrap();
    let first = keeper(2, cache.path(), &[]);
    let other = serve(&[&checkpoint("llama"), "--blocks", "0..4", "--join", first.address()]);
    let left = publish(&first, &folder(), &cache.path().join("publisher.pem"));
    assert!(left.status.success(), "{}", left.stderr);
    let first_name = first.address().rsplit('/').next().unwrap().to_owned();
    let expected = format!("{}\nkept by {first_name}\n", files(0).id());
    assert_eq!(left.stdout, expected, "one of the two keeps any");
    let swarm = join(&other).await.unwrap();
    assert!(fetch_known(&swarm, &files(0)).await);
    let first = first.restart(&["--join", other.address()]);
    assert!(fetch_known(&swarm, &files(0)).await, "it is there again");
    // What has changed on the disk is not sent.
    let kept = cache.path().join("kept-adapters").join(first_name).join(files(0).id().to_string());
    let weights = kept.join("adapter_model.safetensors");
    let mut changed = std::fs::read(&weights).unwrap();
    *changed.last_mut().unwrap() ^= 1;
    std::fs::write(&weights, changed).unwrap();
    let cache = tempfile::tempdir().unwrap();
    assert!(fetch(&swarm, cache.path(), files(0).id(), &model()).await.is_err());
    assert!(!kept.exists(), "and is kept no more");
    first.assert_no_errors();
    other.assert_no_errors();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_has_a_share_and_what_is_in_use_stays() {
    let cache = tempfile::tempdir().unwrap();
    let server = keeper(1, cache.path(), &[]);
    let kept = || kept(cache.path());
    let owner = join(&server).await.unwrap();
    assert!(leave(&owner, files(0), 1).await[0].1.is_ok());
    assert!(leave(&owner, files(1), 1).await[0].1.is_ok());
    assert_eq!(kept(), [files(1).id().to_string()], "its own oldest made room");
    let user = join(&server).await.unwrap();
    assert!(fetch_known(&user, &files(1)).await);
    // A peer that comes under ever new names.
    for number in 2..9 {
        let stranger = join(&server).await.unwrap();
        assert!(leave(&stranger, files(number), 1).await[0].1.is_ok());
    }
    let kept = kept();
    assert_eq!(kept.len(), 4);
    assert!(kept.contains(&files(1).id().to_string()), "somebody uses it");
    server.assert_no_errors();
}

#[test]
fn who_leaves_adapters_with_one_key_has_one_share() {
    let (cache, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let server = keeper(1, cache.path(), &[]);
    let leave = |number: usize, publisher: &str| {
        let folder = scratch.path().join(number.to_string());
        files(number).write(&folder).unwrap();
        let left = publish(&server, &folder, &scratch.path().join(publisher));
        assert!(left.status.success(), "{}", left.stderr);
    };
    leave(0, "one.pem");
    leave(1, "one.pem");
    assert_eq!(kept(cache.path()), [files(1).id().to_string()], "its own oldest made room");
    leave(2, "other.pem");
    assert_eq!(kept(cache.path()).len(), 2);
    server.assert_no_errors();
}

#[test]
fn servers_that_keep_none_say_so() {
    let server = serve(&[&checkpoint("llama"), "--blocks", "0..4"]);
    let scratch = tempfile::tempdir().unwrap();
    let refused = publish(&server, &folder(), &scratch.path().join("publisher.pem"));
    assert_eq!(refused.status.code(), Some(1));
    let stderr = refused.stderr;
    assert!(stderr.contains("no server keeps the adapter"), "{stderr}");
    assert!(stderr.contains("does not accept links of"), "{stderr}");
    server.assert_no_errors();
}

/// One that says what it likes about what it sends.
struct Liar {
    sender: umbel_net::LinkSender,
    receiver: umbel_net::LinkReceiver,
}

impl Liar {
    async fn new(network: &Network, server: &Server) -> Self {
        let peers = network.join(&[server.address().parse().unwrap()]).await.unwrap();
        let link: Link = network.open_link(peers[0], &[], LinkProtocol::Adapter).await.unwrap();
        let (sender, receiver) = link.split();
        Self { sender, receiver }
    }

    async fn ask(&mut self, request: KeepAdapter) -> Option<AdapterAnswer> {
        self.sender.send(AdapterRequest::Keep(request).encode()).await.ok()?;
        let frame = self.receiver.receive().await.ok()??;
        Some(AdapterAnswer::decode(frame).unwrap())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_as_it_is_said_to_be_is_not_kept() {
    let cache = tempfile::tempdir().unwrap();
    let server = keeper(1, cache.path(), &[]);
    let client = || async {
        let config = NetworkConfig::new(Identity::ephemeral(), Role::Client);
        Network::start(config).await.unwrap()
    };
    let (id, PeftFiles { config, weights }) = (files(0).id(), files(0));
    let (config_bytes, weights_bytes) = (config.len() as u64, weights.len() as u64);
    let offer = KeepAdapter { id, config_bytes, weights_bytes, offset: 0, bytes: Bytes::new() };
    let all = |weights: &[u8]| Bytes::from([&config[..], weights].concat());
    let mut changed = weights.clone();
    *changed.last_mut().unwrap() ^= 1;
    let send = Some(AdapterAnswer::Keeping(Keeping::Send { offset: 0 }));
    let refused = |why| Some(AdapterAnswer::Keeping(Keeping::Refused(why)));
    // Larger than any that is kept.
    let network = client().await;
    let mut liar = Liar::new(&network, &server).await;
    let huge = KeepAdapter { weights_bytes: 1 << 40, ..offer.clone() };
    assert_eq!(liar.ask(huge).await, refused(KeepRefusal::TooLarge));
    let huge = KeepAdapter { config_bytes: 1 << 21, ..offer.clone() };
    assert_eq!(liar.ask(huge).await, refused(KeepRefusal::TooLarge));
    // Other bytes than their name says, on the same link.
    assert_eq!(liar.ask(offer.clone()).await, send);
    let wrong = KeepAdapter { bytes: all(&changed), ..offer.clone() };
    assert_eq!(liar.ask(wrong).await, refused(KeepRefusal::OtherContent));
    // Something else than an adapter of this model, under its own name.
    let nonsense = PeftFiles { config: b"{}".to_vec(), weights: vec![7; 9] };
    let other =
        KeepAdapter { id: nonsense.id(), config_bytes: 2, weights_bytes: 9, ..offer.clone() };
    assert_eq!(liar.ask(other.clone()).await, send);
    let other = KeepAdapter {
        bytes: Bytes::from_static(b"{}\x07\x07\x07\x07\x07\x07\x07\x07\x07"),
        ..other
    };
    assert_eq!(liar.ask(other).await, refused(KeepRefusal::OtherModel));
    // While one holds its whole share by what it does not send, it has no more; others have theirs.
    assert_eq!(liar.ask(offer.clone()).await, send);
    let mut more = Liar::new(&network, &server).await;
    let second = KeepAdapter { id: files(1).id(), config_bytes: config_bytes + 1, ..offer.clone() };
    assert_eq!(more.ask(second).await, refused(KeepRefusal::ShareUsed));
    let others = join(&server).await.unwrap();
    let again = leave(&others, files(0), 1).await;
    assert!(matches!(again[0].1, Err(LeaveError::Refused(KeepRefusal::Full))), "{again:?}");
    assert!(leave(&others, files(2), 1).await[0].1.is_ok());
    // Bytes that were not asked for end the link, and give the room back.
    let skipping = KeepAdapter { offset: 5, bytes: all(&weights), ..offer.clone() };
    assert_eq!(liar.ask(skipping).await, None);
    let begun = Instant::now();
    while leave(&others, files(0), 1).await[0].1.is_err() {
        assert!(begun.elapsed() < KNOWN_TIMEOUT, "its room was not given back");
    }
    server.assert_no_errors();
}
