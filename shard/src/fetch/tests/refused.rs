//! What the hub gives that is not taken, and what it does not give.

use umbel_protocol::error::in_one_line;

use super::*;

#[test]
fn bytes_that_are_not_those_announced_are_refused_and_deleted() {
    let root = tempfile::tempdir().unwrap();
    let (behaviour, local) = checkpoint(root.path());
    let hub = Hub::start(Behaviour { lies: true, ..behaviour });
    let cache = cache(root.path(), &hub);
    let error = open(&cache, span(1, 2)).unwrap_err();
    assert!(matches!(error, OpenModelError::Fetch(FetchError::Digest { .. })), "{error}");
    assert!(!snapshot(&cache).join("blocks-b.safetensors").exists());
    assert!(!snapshot(&cache).join("blocks-b.safetensors.part").exists());
    hub.behaviour().lies = false;
    fs::remove_dir_all(cache.root()).unwrap();
    assert_eq!(open(&cache, span(1, 2)).unwrap().id(), local.id());
}

#[test]
fn a_cached_file_that_was_changed_is_fetched_again() {
    let root = tempfile::tempdir().unwrap();
    let (behaviour, local) = checkpoint(root.path());
    let hub = Hub::start(behaviour);
    let cache = cache(root.path(), &hub);
    open(&cache, span(1, 2)).unwrap();
    let path = snapshot(&cache).join("blocks-b.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    bytes.push(0);
    fs::write(&path, bytes).unwrap();
    assert_eq!(open(&cache, span(1, 2)).unwrap().id(), local.id());
}

#[test]
fn a_gated_repository_asks_for_a_token() {
    let root = tempfile::tempdir().unwrap();
    let (behaviour, local) = checkpoint(root.path());
    let hub = Hub::start(Behaviour { token: Some("secret".to_owned()), ..behaviour });
    let text = in_one_line(&open(&cache(root.path(), &hub), span(0, 1)).unwrap_err());
    assert!(text.contains("set HF_TOKEN"), "{text}");
    let with = |token: &str| {
        let config = HubConfig { token: Some(token.to_owned()), ..hub.config() };
        assert!(!format!("{config:?}").contains(token), "a token is never shown");
        open(&Cache::new(root.path().join("cache")).with_hub(config), span(0, 1))
    };
    assert!(in_one_line(&with("wrong").unwrap_err()).contains("may not read it"));
    assert_eq!(with("secret").unwrap().id(), local.id());
}

#[test]
fn what_is_not_on_the_hub_is_named() {
    let root = tempfile::tempdir().unwrap();
    let (behaviour, _) = checkpoint(root.path());
    let hub = Hub::start(behaviour);
    let cache = cache(root.path(), &hub);
    let error = |name: &str| {
        let source = ModelSource::parse(name).unwrap();
        in_one_line(&Model::open(&source, &cache, PartsNeeded::nothing(), &Silent).unwrap_err())
    };
    assert!(error("hf:owner/other").contains("no repository owner/other"));
    assert!(error(&format!("hf:{REPOSITORY}@v9")).contains("no such branch"));
    hub.behaviour().files.remove("model.safetensors.index.json");
    let text = error(&format!("hf:{REPOSITORY}"));
    assert!(text.contains("no model.safetensors"), "{text}");
    hub.behaviour().no_commit = true;
    assert!(error(&format!("hf:{REPOSITORY}")).contains("X-Repo-Commit"));
    let nowhere = HubConfig { endpoint: "ftp://x".to_owned(), token: None };
    let refused = open(&cache.clone().with_hub(nowhere), PartsNeeded::nothing()).unwrap_err();
    assert!(refused.to_string().contains("HF_ENDPOINT"), "{refused}");
}

#[test]
fn an_index_of_the_hub_cannot_name_files_elsewhere() {
    let root = tempfile::tempdir().unwrap();
    let (mut behaviour, _) = checkpoint(root.path());
    let index = br#"{"weight_map": {"model.norm.weight": "../../../refs.safetensors"}}"#;
    behaviour.files.insert("model.safetensors.index.json".to_owned(), index.to_vec());
    let hub = Hub::start(behaviour);
    let text = in_one_line(&open(&cache(root.path(), &hub), PartsNeeded::nothing()).unwrap_err());
    assert!(text.contains("../../../refs.safetensors"), "{text}");
}
