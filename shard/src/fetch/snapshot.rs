//! The files of a repository at one commit: which are needed, which are here.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::client::{Client, RemoteFile};
use super::download::{Wanted, download};
use super::{FetchError, HubRepository};
use crate::checkpoint::{
    CONFIG_FILE, Checkpoint, GENERATION_FILE, INDEX_FILE, SINGLE_FILE, Shard, read_config,
    read_index, weight_files,
};
use crate::config::ModelConfig;
use crate::manifest::Sha256Digest;
use crate::model::OpenModelError;
use crate::part::PartsNeeded;
use crate::plan;
use crate::progress::Progress;
use crate::safetensors::WeightIndex;
use crate::store::{Cache, FileLock, ReadFileError, beside};

/// Largest file beside the weights: tokenizers have up to 35 MB, indices of many experts more.
const SMALL_FILE_BYTES_MAX: u64 = 256 << 20;
/// Largest file of weights; the hub allows 50 GB.
const WEIGHT_FILE_BYTES_MAX: u64 = 1 << 40;
const TOKENIZER_FILES: [&str; 3] =
    ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

/// Fetches what `parts` need of a repository and is not here, and learns the digests of the rest.
pub(crate) fn checkpoint(
    repository: &HubRepository,
    cache: &Cache,
    parts: PartsNeeded,
    progress: &dyn Progress,
) -> Result<Checkpoint, OpenModelError> {
    let client = Client::new(cache.hub())?;
    let root = cache.hub_folder(repository.owner(), repository.name());
    let Resolved { commit, in_reach } = resolve(&client, repository, &root)?;
    let folder = root.join(&commit);
    let snapshot = Snapshot { client, repository, commit, folder, cache, progress };
    snapshot.small_files(&[CONFIG_FILE])?;
    snapshot.here(CONFIG_FILE).ok_or_else(|| snapshot.no(CONFIG_FILE))?;
    if in_reach {
        snapshot.generation_file()?;
    }
    let config = read_config(&snapshot.folder)?;
    // Blocks that do not exist are refused before anything is fetched for them.
    plan::tensors(&config, parts)?;
    snapshot.small_files(&[INDEX_FILE])?;
    if parts.tokenizer {
        snapshot.small_files(&TOKENIZER_FILES)?;
    }
    let index = match snapshot.here(INDEX_FILE) {
        Some(path) => Some(read_index(&path)?),
        None => None,
    };
    let shards = snapshot.shards(&config, index.as_ref(), parts)?;
    Ok(Checkpoint { folder: snapshot.folder, config, index, shards })
}

/// What a revision stands for.
struct Resolved {
    commit: String,
    /// Whether the hub said so now.
    in_reach: bool,
}

/// The commit that the revision stands for; the last one seen, where the hub cannot be reached or does
/// not answer for now.
fn resolve(
    client: &Client,
    repository: &HubRepository,
    root: &Path,
) -> Result<Resolved, OpenModelError> {
    let seen_path = root.join("refs").join(repository.revision().replace('/', "%2F"));
    let seen = fs::read_to_string(&seen_path).ok();
    let seen = seen.filter(|commit| commit.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    match client.describe(repository, repository.revision(), CONFIG_FILE) {
        Ok(Some((commit, _))) => {
            if seen.as_ref() != Some(&commit) {
                write_whole(&seen_path, &commit)?;
            }
            Ok(Resolved { commit, in_reach: true })
        }
        Ok(None) => {
            let (repository, file) = (repository.to_string(), CONFIG_FILE.to_owned());
            Err(FetchError::NoFile { repository, file }.into())
        }
        Err(error) if error.is_passing() => match seen {
            Some(commit) => {
                warn!(%repository, %error, "the hub cannot be reached; using what was fetched before");
                Ok(Resolved { commit, in_reach: false })
            }
            None => Err(error.into()),
        },
        Err(error) => Err(error.into()),
    }
}

/// Writes a small file so that nobody reads half of it.
fn write_whole(path: &Path, text: &str) -> Result<(), FetchError> {
    let error = |source| FetchError::Write { path: path.to_owned(), source };
    let _lock = FileLock::wait(&beside(path, "lock")).map_err(error)?;
    let part = beside(path, "part");
    fs::write(&part, text).map_err(error)?;
    fs::rename(&part, path).map_err(error)
}

/// A repository at one commit.
struct Snapshot<'a> {
    client: Client,
    repository: &'a HubRepository,
    commit: String,
    folder: PathBuf,
    cache: &'a Cache,
    progress: &'a dyn Progress,
}

impl Snapshot<'_> {
    /// Where a file is, if it is here.
    fn here(&self, file: &str) -> Option<PathBuf> {
        Some(self.folder.join(file)).filter(|path| path.is_file())
    }

    /// Fetches those files beside the weights that the repository has and that are not here.
    fn small_files(&self, files: &[&str]) -> Result<(), OpenModelError> {
        let missing: Vec<&str> =
            files.iter().copied().filter(|file| self.here(file).is_none()).collect();
        for (file, remote) in missing.iter().zip(self.describe(&missing)?) {
            if let Some(remote) = remote {
                self.fetch(file, &remote, SMALL_FILE_BYTES_MAX)?;
            }
        }
        Ok(())
    }

    /// Fetches `generation_config.json`, if the repository has one. It changes no number of the model, and
    /// what was fetched before anybody asked for it is of use without it, until the hub can give it and the
    /// cache can take it.
    fn generation_file(&self) -> Result<(), OpenModelError> {
        let is_forgiven = |error: &FetchError| {
            error.is_passing()
                || matches!(error, FetchError::BrokeOff { .. } | FetchError::Write { .. })
        };
        match self.small_files(&[GENERATION_FILE]) {
            Err(OpenModelError::Fetch(error)) if is_forgiven(&error) => {
                let repository = self.repository;
                warn!(%repository, %error, "what else ends an answer is not known for now; going on without");
                Ok(())
            }
            done => done,
        }
    }

    fn shards(
        &self,
        config: &ModelConfig,
        index: Option<&WeightIndex>,
        parts: PartsNeeded,
    ) -> Result<Vec<Shard>, OpenModelError> {
        let needed = plan::files(config, parts, |tensor| {
            index.map_or(Some(SINGLE_FILE), |index| index.file_of(tensor))
        })?;
        let names = weight_files(config, index)?;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let found = self.digests_here(&names)?;
        let mut shards = Vec::new();
        for (name, remote) in names.iter().zip(self.describe(&names)?) {
            let remote = remote.ok_or_else(|| self.no(name))?;
            let found = found.get(name).copied();
            shards.push(self.shard(name, &remote, needed.contains(name), found)?);
        }
        Ok(shards)
    }

    /// The digests of those files that are here.
    fn digests_here<'n>(
        &self,
        names: &[&'n str],
    ) -> Result<BTreeMap<&'n str, Sha256Digest>, ReadFileError> {
        let here = names.iter().filter_map(|&name| Some((name, self.here(name)?)));
        let (names, paths): (Vec<&str>, Vec<PathBuf>) = here.unzip();
        Ok(names.into_iter().zip(self.cache.digests(&paths, self.progress)?).collect())
    }

    /// One file of weights: `found` is its digest where it is here already.
    fn shard(
        &self,
        name: &str,
        remote: &RemoteFile,
        needed: bool,
        found: Option<Sha256Digest>,
    ) -> Result<Shard, OpenModelError> {
        let path = self.folder.join(name);
        let shard = |path, sha256| {
            let (name, bytes) = (name.to_owned(), remote.bytes);
            Shard { name, path, sha256, bytes }
        };
        match (found, remote.sha256) {
            (Some(found), Some(expected)) if found != expected => {
                warn!(path = %path.display(), "a cached file has changed; fetching it again");
                let error = |source| FetchError::Write { path: path.clone(), source };
                fs::remove_file(&path).map_err(error)?;
            }
            (Some(found), Some(_) | None) => return Ok(shard(Some(path), found)),
            (None, Some(_) | None) => {}
        }
        if let Some(expected) = remote.sha256.filter(|_| !needed) {
            return Ok(shard(None, expected));
        }
        // Without a digest from the hub the id can only be known by fetching the file.
        let digest = self.fetch(name, remote, WEIGHT_FILE_BYTES_MAX)?;
        Ok(shard(Some(path), digest))
    }

    fn fetch(
        &self,
        file: &str,
        remote: &RemoteFile,
        bytes_max: u64,
    ) -> Result<Sha256Digest, OpenModelError> {
        let url = self.client.url(self.repository, &self.commit, file);
        let target = &self.folder.join(file);
        let wanted = Wanted { url, target, remote, bytes_max };
        if let Some(digest) = download(&self.client, &wanted, self.cache, self.progress)? {
            return Ok(digest);
        }
        // Another process fetched it meanwhile.
        let digests = self.digests_here(&[file])?;
        digests.into_values().next().ok_or_else(|| self.no(file).into())
    }

    /// What the hub says of each file, or said before: at a commit it never changes.
    fn describe(&self, files: &[&str]) -> Result<Vec<Option<RemoteFile>>, FetchError> {
        let key = |file: &&str| {
            let (owner, name) = (self.repository.owner(), self.repository.name());
            format!("hub\0{owner}/{name}\0{}\0{file}", self.commit).into_bytes()
        };
        let keys: Vec<Vec<u8>> = files.iter().map(key).collect();
        let known = self.cache.index().read_all(&keys);
        let (mut described, mut new) = (Vec::new(), Vec::new());
        for ((file, key), known) in files.iter().zip(keys).zip(known) {
            if let Some(known) = known.and_then(|bytes| decode(&bytes)) {
                described.push(known);
                continue;
            }
            let answer = self.client.describe(self.repository, &self.commit, file)?;
            let remote = answer.map(|(_, remote)| remote);
            new.push((key, encode(remote.as_ref())));
            described.push(remote);
        }
        self.cache.index().write_all(&new);
        Ok(described)
    }

    fn no(&self, file: &str) -> FetchError {
        FetchError::NoFile { repository: self.repository.to_string(), file: file.to_owned() }
    }
}

/// Nothing for no such file; else the length behind 0 or 1, then the digest, where it is known.
fn encode(remote: Option<&RemoteFile>) -> Vec<u8> {
    let Some(remote) = remote else {
        return Vec::new();
    };
    let mut bytes = vec![u8::from(remote.bytes.is_some())];
    bytes.extend(remote.bytes.unwrap_or(0).to_le_bytes());
    bytes.extend(remote.sha256.iter().flatten());
    bytes
}

/// `None` where the bytes are of another version of this program.
fn decode(bytes: &[u8]) -> Option<Option<RemoteFile>> {
    let Some((&known, rest)) = bytes.split_first() else {
        return Some(None);
    };
    let (length, digest) = rest.split_first_chunk::<8>()?;
    let bytes = (known == 1).then_some(u64::from_le_bytes(*length));
    let sha256 = match digest {
        [] => None,
        digest => Some(digest.try_into().ok()?),
    };
    Some(Some(RemoteFile { sha256, bytes }))
}
