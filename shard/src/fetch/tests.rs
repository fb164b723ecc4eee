//! The hub, played by a small server on this machine.

use std::fs;
use std::path::Path;
use std::sync::{Mutex, mpsc};
use std::thread;
use std::time::Duration;

use umbel_protocol::Span;

use super::*;
use crate::model::tests::support;
use crate::model::{Model, OpenModelError};
use crate::part::{Part, PartsNeeded};
use crate::progress::{Progress, Silent};
use crate::source::ModelSource;
use crate::store::{Cache, FileLock};

mod hub;
mod refused;

use hub::{Behaviour, COMMIT, Hub, REPOSITORY};

/// The files of a checkpoint in three shards, and its folder's model.
fn checkpoint(root: &Path) -> (Behaviour, Model) {
    let original = support::open(root, &support::fixture_folder("qwen3")).unwrap();
    let folder = root.join("local");
    support::write_sharded(&folder, "qwen3", &support::all_weights(&original));
    let mut files = std::collections::BTreeMap::new();
    for entry in fs::read_dir(&folder).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        files.insert(name, fs::read(entry.path()).unwrap());
    }
    files.insert("tokenizer_config.json".to_owned(), br#"{"eos_token": "</s>"}"#.to_vec());
    let local = support::open(root, &folder).unwrap();
    (Behaviour { files, ..Behaviour::default() }, local)
}

fn open(cache: &Cache, parts: PartsNeeded) -> Result<Model, OpenModelError> {
    let source = ModelSource::parse(&format!("hf:{REPOSITORY}")).unwrap();
    Model::open(&source, cache, parts, &Silent)
}

fn cache(root: &Path, hub: &Hub) -> Cache {
    Cache::new(root.join("cache")).with_hub(hub.config())
}

fn snapshot(cache: &Cache) -> std::path::PathBuf {
    cache.hub_folder("owner", "model").join(COMMIT)
}

fn span(start: u32, end: u32) -> PartsNeeded {
    PartsNeeded::span(Span::new(start, end).unwrap())
}

#[test]
fn only_the_files_of_the_span_are_fetched_and_the_id_is_that_of_the_whole() {
    let root = tempfile::tempdir().unwrap();
    let (behaviour, local) = checkpoint(root.path());
    let hub = Hub::start(behaviour);
    let cache = cache(root.path(), &hub);

    let nothing = open(&cache, PartsNeeded::nothing()).unwrap();
    assert_eq!(nothing.id(), local.id());
    assert_eq!(nothing.config(), local.config());
    assert!(hub.take_requests().iter().all(|request| !request.contains("storage")));
    let estimate = nothing.manifest().block_bytes(1) as f64;
    let exact = local.manifest().block_bytes(1) as f64;
    assert!((estimate / exact - 1.0).abs() < 0.05, "{estimate} for {exact}");

    let server = open(&cache, span(1, 2)).unwrap();
    let fetched: Vec<String> =
        hub.take_requests().into_iter().filter(|request| request.contains("storage")).collect();
    assert_eq!(fetched, ["GET /storage/blocks-b.safetensors"]);
    assert_eq!(server.id(), local.id());
    assert!(server.tokenizer().is_none() && server.special_tokens().eos.is_none());
    let block = Part::Blocks(Span::new(1, 2).unwrap());
    let expected = local.weights(block).unwrap();
    for (name, weight) in server.weights(block).unwrap().iter() {
        assert!(weight.bytes() == expected.get(name).unwrap().bytes(), "{name}");
    }
    let error = server.weights(Part::Head).unwrap_err();
    assert!(error.to_string().contains("ends.safetensors"), "{error}");

    let whole = open(&cache, PartsNeeded::everything()).unwrap();
    assert_eq!(whole.id(), local.id());
    assert_eq!(whole.special_tokens().eos.as_deref(), Some("</s>"));
    assert_eq!(support::all_weights(&whole).bytes_total(), local.manifest().total_bytes());
    assert_eq!(whole.name(), REPOSITORY);
}

#[test]
fn a_model_that_was_fetched_opens_without_the_hub() {
    let root = tempfile::tempdir().unwrap();
    let (behaviour, local) = checkpoint(root.path());
    let hub = Hub::start(behaviour);
    let cache = cache(root.path(), &hub);
    open(&cache, span(0, 1)).unwrap();
    hub.take_requests();
    open(&cache, span(0, 1)).unwrap();
    let asked = hub.take_requests();
    assert_eq!(asked, [format!("HEAD /{REPOSITORY}/resolve/main/config.json")]);
    drop(hub);
    assert_eq!(open(&cache, span(0, 1)).unwrap().id(), local.id());
    let error = open(&cache, span(1, 2)).unwrap_err();
    assert!(error.to_string().contains("check the network"), "{error}");
}

#[test]
fn a_model_that_was_fetched_opens_while_the_hub_has_too_much_to_do() {
    let root = tempfile::tempdir().unwrap();
    let (behaviour, local) = checkpoint(root.path());
    let hub = Hub::start(behaviour);
    let cache = cache(root.path(), &hub);
    open(&cache, span(0, 1)).unwrap();
    for status in [408, 429, 500, 503] {
        hub.behaviour().status = Some(status);
        assert_eq!(open(&cache, span(0, 1)).unwrap().id(), local.id(), "{status}");
        let error = open(&cache, span(1, 2)).unwrap_err();
        assert!(error.to_string().contains(&status.to_string()), "{error}");
    }
    hub.behaviour().status = Some(401);
    let error = open(&cache, span(0, 1)).unwrap_err();
    assert!(matches!(error, OpenModelError::Fetch(FetchError::Refused { .. })), "{error}");
}

#[test]
fn a_cached_model_asks_once_for_the_file_that_says_what_ends_an_answer() {
    const FILE: &str = "generation_config.json";
    let root = tempfile::tempdir().unwrap();
    let (mut behaviour, local) = checkpoint(root.path());
    behaviour.files.insert(FILE.to_owned(), br#"{"eos_token_id": [2, 7]}"#.to_vec());
    // As the cache of a version that did not know the file.
    let hub = Hub::start(Behaviour { withheld: Some(FILE), ..behaviour });
    let cache = cache(root.path(), &hub);
    let before = open(&cache, PartsNeeded::everything()).unwrap();
    assert_eq!((before.id(), &before.config().eos_token_ids[..]), (local.id(), &[2][..]));

    hub.behaviour().withheld = None;
    hub.take_requests();
    let after = open(&cache, PartsNeeded::everything()).unwrap();
    assert_eq!((after.id(), &after.config().eos_token_ids[..]), (local.id(), &[2, 7][..]));
    let (head, get) = (format!("HEAD /{REPOSITORY}"), format!("GET /{REPOSITORY}"));
    let first = format!("{head}/resolve/main/config.json");
    let file = format!("/resolve/{COMMIT}/{FILE}");
    let asked = [first.clone(), format!("{head}{file}"), format!("{get}{file}")];
    assert_eq!(hub.take_requests(), asked);
    open(&cache, PartsNeeded::everything()).unwrap();
    assert_eq!(hub.take_requests(), [first]);
    drop(hub);
    let alone = open(&cache, PartsNeeded::everything()).unwrap();
    assert_eq!(alone.config().eos_token_ids, [2, 7]);
}

#[test]
fn a_cached_model_opens_without_the_file_that_says_what_ends_an_answer_where_it_cannot_be_kept() {
    const FILE: &str = "generation_config.json";
    let root = tempfile::tempdir().unwrap();
    let (mut behaviour, local) = checkpoint(root.path());
    behaviour.files.insert(FILE.to_owned(), br#"{"eos_token_id": [2, 7]}"#.to_vec());
    let hub = Hub::start(Behaviour { withheld: Some(FILE), ..behaviour });
    let cache = cache(root.path(), &hub);
    let ends_with = |tokens: &[u32]| {
        let model = open(&cache, PartsNeeded::everything()).unwrap();
        assert_eq!((model.id(), &model.config().eos_token_ids[..]), (local.id(), tokens));
    };
    ends_with(&[2]);
    hub.behaviour().withheld = None;

    // As in a cache that may not be written, which a test that runs as root cannot have.
    let lock = snapshot(&cache).join(format!("{FILE}.lock"));
    fs::create_dir(&lock).unwrap();
    ends_with(&[2]);
    fs::remove_dir(&lock).unwrap();

    hub.behaviour().cuts = usize::MAX;
    ends_with(&[2]);
    hub.behaviour().cuts = 0;
    ends_with(&[2, 7]);
}

#[test]
fn a_download_that_breaks_off_goes_on_from_there() {
    let root = tempfile::tempdir().unwrap();
    let (behaviour, local) = checkpoint(root.path());
    let length = behaviour.files["blocks-b.safetensors"].len();
    let hub = Hub::start(behaviour);
    let cache = cache(root.path(), &hub);
    open(&cache, PartsNeeded::nothing()).unwrap();
    hub.take_requests();
    hub.behaviour().cuts = 3;
    assert_eq!(open(&cache, span(1, 2)).unwrap().id(), local.id());
    let ranges: Vec<String> =
        hub.take_requests().into_iter().filter(|request| request.contains("storage")).collect();
    assert_eq!(ranges.len(), 4, "{ranges:?}");
    assert!(ranges[1].ends_with(&format!("bytes={}-", length / 2)), "{ranges:?}");
}

#[test]
fn a_part_that_an_earlier_process_left_is_used() {
    let root = tempfile::tempdir().unwrap();
    let (behaviour, local) = checkpoint(root.path());
    let bytes = behaviour.files["blocks-b.safetensors"].clone();
    let hub = Hub::start(behaviour);
    let cache = cache(root.path(), &hub);
    open(&cache, PartsNeeded::nothing()).unwrap();
    let part = snapshot(&cache).join("blocks-b.safetensors.part");
    let storage = || {
        let requests = hub.take_requests().into_iter();
        requests.filter(|request| request.contains("storage")).collect::<Vec<_>>()
    };
    fs::write(&part, &bytes[..1000]).unwrap();
    assert_eq!(open(&cache, span(1, 2)).unwrap().id(), local.id());
    assert_eq!(storage(), ["GET /storage/blocks-b.safetensors bytes=1000-"]);

    // Left by something else: the digest shows it, and the file is fetched whole.
    let part = snapshot(&cache).join("blocks-a.safetensors.part");
    fs::write(&part, vec![7; 1000]).unwrap();
    assert_eq!(open(&cache, span(0, 1)).unwrap().id(), local.id());
    assert_eq!(storage().len(), 2);

    // Longer than the file can be.
    let part = snapshot(&cache).join("ends.safetensors.part");
    fs::write(&part, vec![7; 1 << 20]).unwrap();
    assert_eq!(open(&cache, PartsNeeded::ends()).unwrap().id(), local.id());
    assert_eq!(storage(), ["GET /storage/ends.safetensors"]);
}

#[test]
fn a_server_that_knows_no_ranges_is_understood() {
    let root = tempfile::tempdir().unwrap();
    let (behaviour, local) = checkpoint(root.path());
    let hub = Hub::start(Behaviour { ignores_ranges: true, ..behaviour });
    let cache = cache(root.path(), &hub);
    open(&cache, PartsNeeded::nothing()).unwrap();
    hub.behaviour().cuts = 1;
    let model = open(&cache, PartsNeeded::everything()).unwrap();
    assert_eq!(support::all_weights(&model).bytes_total(), local.manifest().total_bytes());
}

#[test]
fn a_mirror_without_digests_or_head_costs_the_whole_model() {
    let root = tempfile::tempdir().unwrap();
    let (behaviour, local) = checkpoint(root.path());
    let hub = Hub::start(Behaviour { plain: true, no_head: true, ..behaviour });
    let model = open(&cache(root.path(), &hub), span(0, 1)).unwrap();
    assert_eq!(model.id(), local.id());
    assert!(model.weights(Part::Head).is_ok(), "its digest could not be known otherwise");
}

#[test]
fn a_renamed_repository_is_followed() {
    let root = tempfile::tempdir().unwrap();
    let (behaviour, local) = checkpoint(root.path());
    let hub = Hub::start(Behaviour { former_name: Some("old/name".to_owned()), ..behaviour });
    let source = ModelSource::parse("hf:old/name").unwrap();
    let model = Model::open(&source, &cache(root.path(), &hub), PartsNeeded::everything(), &Silent)
        .unwrap();
    assert_eq!(model.id(), local.id());
}

#[test]
fn processes_that_start_together_fetch_a_file_once() {
    let root = tempfile::tempdir().unwrap();
    let (behaviour, local) = checkpoint(root.path());
    let hub = Hub::start(behaviour);
    let cache = cache(root.path(), &hub);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| assert_eq!(open(&cache, span(0, 2)).unwrap().id(), local.id()));
        }
    });
    let requests = hub.take_requests();
    let fetched = requests.iter().filter(|request| request.contains("GET /storage")).count();
    assert_eq!(fetched, 2, "{requests:?}");
}

/// Passes on what each piece of work is called.
struct Labels(mpsc::Sender<String>);

impl Progress for Labels {
    fn start(&self, _total: Option<u64>, label: &str) {
        // Nobody listens any more to what follows.
        let _unheard = self.0.send(label.to_owned());
    }

    fn advance(&self, _bytes: u64) {}

    fn finish(&self) {}
}

#[test]
fn who_waits_for_what_another_process_fetches_says_so() {
    let root = tempfile::tempdir().unwrap();
    let (behaviour, local) = checkpoint(root.path());
    let hub = Hub::start(behaviour);
    let cache = cache(root.path(), &hub);
    open(&cache, PartsNeeded::nothing()).unwrap();
    let source = ModelSource::parse(&format!("hf:{REPOSITORY}")).unwrap();
    let (told, labels) = mpsc::channel();
    let progress = Labels(told);
    thread::scope(|scope| {
        let held = FileLock::wait(&snapshot(&cache).join("blocks-b.safetensors.lock")).unwrap();
        let opening = scope.spawn(|| Model::open(&source, &cache, span(1, 2), &progress).unwrap());
        let label = labels.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!(label, "waiting for blocks-b.safetensors, which another process fetches");
        drop(held);
        assert_eq!(opening.join().unwrap().id(), local.id());
    });
}

/// Counts what it is told.
#[derive(Default)]
struct Counting(Mutex<Vec<(Option<u64>, u64)>>);

impl Progress for Counting {
    fn start(&self, total: Option<u64>, _label: &str) {
        self.0.lock().unwrap().push((total, 0));
    }

    fn advance(&self, bytes: u64) {
        self.0.lock().unwrap().last_mut().unwrap().1 += bytes;
    }

    fn finish(&self) {}
}

#[test]
fn progress_adds_up() {
    let root = tempfile::tempdir().unwrap();
    let (behaviour, _) = checkpoint(root.path());
    let length = behaviour.files["blocks-b.safetensors"].len() as u64;
    let hub = Hub::start(behaviour);
    let counting = Counting::default();
    let source = ModelSource::parse(&format!("hf:{REPOSITORY}")).unwrap();
    Model::open(&source, &cache(root.path(), &hub), span(1, 2), &counting).unwrap();
    let told = counting.0.into_inner().unwrap();
    assert!(told.iter().all(|&(total, done)| total.is_none_or(|total| total == done)), "{told:?}");
    assert!(told.contains(&(Some(length), length)), "{told:?}");
}
