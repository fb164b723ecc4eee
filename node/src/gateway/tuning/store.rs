//! Files and jobs in a folder: a record of each in JSON, and what belongs to it beside that.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::Context as _;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::super::reply::unix_seconds;
use crate::folder;

/// A file that somebody has sent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct FileRecord {
    pub(super) id: String,
    pub(super) owner: String,
    pub(super) filename: String,
    pub(super) bytes: u64,
    pub(super) created_at: u64,
    #[serde(default)]
    pub(super) purpose: Purpose,
}

/// What a file is for, as OpenAI calls it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Purpose {
    /// Its lines are learned, or foretold.
    #[default]
    FineTune,
    /// What has come of a job.
    FineTuneResults,
}

/// What is to be learned, and what has come of it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct JobRecord {
    pub(super) id: String,
    pub(super) owner: String,
    pub(super) model: String,
    pub(super) training_file: String,
    #[serde(default)]
    pub(super) validation_file: Option<String>,
    #[serde(default)]
    pub(super) result_file: Option<String>,
    pub(super) suffix: Option<String>,
    pub(super) epochs: u64,
    pub(super) batch: u16,
    pub(super) learning_rate_multiplier: f64,
    pub(super) seed: u64,
    pub(super) status: Status,
    pub(super) created_at: u64,
    pub(super) finished_at: Option<u64>,
    pub(super) error: Option<String>,
    pub(super) fine_tuned_model: Option<String>,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Queued,
    Running,
    Succeeded,
    Failed,
    Cancelled,
}

impl JobRecord {
    /// Whether it is not over and needs this file.
    pub(super) fn needs(&self, file: &str) -> bool {
        let is_named = self.training_file == file || self.validation_file.as_deref() == Some(file);
        is_named && !self.status.is_over()
    }

    fn waits(&self) -> bool {
        self.status == Status::Queued
    }

    /// Whether it is over and there is no adapter of it.
    fn has_left_nothing(&self) -> bool {
        self.status.is_over() && self.fine_tuned_model.is_none()
    }
}

impl Status {
    /// Whether nothing more comes of it.
    pub(super) const fn is_over(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// How many jobs there may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct JobLimits {
    pub(super) of_owner: usize,
    /// Of all owners together.
    pub(super) waiting: usize,
}

/// What has become of a new job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Begun {
    /// It is kept, and waits.
    Queued,
    /// As many wait as may.
    QueueFull,
    /// Its owner has as many as there may be.
    OwnerFull,
}

/// The folder, with all records in memory.
pub(super) struct Store {
    folder: PathBuf,
    records: Mutex<Records>,
    /// Held by whoever changes a job, so that what is over stays so.
    changing: Mutex<()>,
    /// Keeps other processes away as long as it is open.
    _lock: File,
}

#[derive(Default)]
struct Records {
    files: BTreeMap<String, FileRecord>,
    jobs: BTreeMap<String, JobRecord>,
    /// The jobs that wait, in the order in which they came, and some that have waited.
    queue: Vec<String>,
}

impl Records {
    fn count(&self, owner: &str, purpose: Purpose) -> usize {
        let files = self.files.values();
        files.filter(|file| file.owner == owner && file.purpose == purpose).count()
    }

    /// The jobs that wait, the one that came first at the front.
    fn waiting(&self) -> impl Iterator<Item = &JobRecord> {
        self.queue.iter().filter_map(|id| self.jobs.get(id)).filter(|job| job.waits())
    }

    fn line_up(&mut self, id: String) {
        self.queue.retain(|id| self.jobs.get(id).is_some_and(JobRecord::waits));
        self.queue.push(id);
    }
}

impl Store {
    /// Reads the records. Jobs that were not over when their gateway ended have failed; so no other may be
    /// using the folder.
    pub(super) fn open(folder: &Path) -> anyhow::Result<Self> {
        for kind in ["files", "jobs"] {
            // What somebody has sent, and what was learned from it, is no matter of others on the machine.
            DirBuilder::new().recursive(true).mode(0o700).create(folder.join(kind))?;
        }
        let lock = folder::lock(folder)?;
        let mut records = Records::default();
        for file in records_in::<FileRecord>(&folder.join("files"))? {
            records.files.insert(file.id.clone(), file);
        }
        for job in records_in::<JobRecord>(&folder.join("jobs"))? {
            records.jobs.insert(job.id.clone(), job);
        }
        let store = Self {
            folder: folder.to_owned(),
            records: Mutex::new(records),
            changing: Mutex::new(()),
            _lock: lock,
        };
        let left: Vec<_> = store.records().jobs.values().cloned().collect();
        for mut job in left.into_iter().filter(|job| !job.status.is_over()) {
            job.status = Status::Failed;
            job.finished_at = Some(unix_seconds());
            job.error = Some("the gateway ended before the job did".to_owned());
            store.keep_job(job)?;
        }
        Ok(store)
    }

    /// The files of somebody, the newest first.
    pub(super) fn files(&self, owner: &str) -> Vec<FileRecord> {
        let mut files: Vec<_> = self.records().files.values().cloned().collect();
        files.retain(|file| file.owner == owner);
        files.sort_by_key(|file| std::cmp::Reverse(file.created_at));
        files
    }

    /// The jobs of somebody, the newest first.
    pub(super) fn jobs(&self, owner: &str) -> Vec<JobRecord> {
        let mut jobs: Vec<_> = self.records().jobs.values().cloned().collect();
        jobs.retain(|job| job.owner == owner);
        jobs.sort_by_key(|job| std::cmp::Reverse(job.created_at));
        jobs
    }

    pub(super) fn job(&self, id: &str) -> Option<JobRecord> {
        self.records().jobs.get(id).cloned()
    }

    /// How many files somebody has for a purpose.
    pub(super) fn count(&self, owner: &str, purpose: Purpose) -> usize {
        self.records().count(owner, purpose)
    }

    /// Keeps a file with its lines, unless its owner has as many for its purpose already as there may be;
    /// says whether it is kept.
    pub(super) fn keep_file(
        &self,
        file: FileRecord,
        lines: &[u8],
        at_most: usize,
    ) -> io::Result<bool> {
        let path = self.lines_of(&file.id);
        write_for_owner(&path, lines)?;
        // From here on nobody else adds one. The record is small, as the lines need not be.
        let mut records = self.records();
        if records.count(&file.owner, file.purpose) >= at_most {
            drop(records);
            fs::remove_file(path)?;
            return Ok(false);
        }
        write(&self.folder.join("files").join(format!("{}.json", file.id)), &file)?;
        records.files.insert(file.id.clone(), file);
        Ok(true)
    }

    pub(super) fn forget_file(&self, id: &str) -> io::Result<()> {
        self.records().files.remove(id);
        fs::remove_file(self.folder.join("files").join(format!("{id}.json")))?;
        fs::remove_file(self.lines_of(id))
    }

    /// Keeps a job as it is now.
    pub(super) fn keep_job(&self, job: JobRecord) -> io::Result<()> {
        fs::create_dir_all(self.folder.join("jobs").join(&job.id))?;
        write(&self.folder.join("jobs").join(format!("{}.json", job.id)), &job)?;
        self.records().jobs.insert(job.id.clone(), job);
        Ok(())
    }

    /// Keeps a new job, which waits from now on, unless there are as many as there may be. Of those of its
    /// owner that ended and have left no adapter the oldest is forgotten, if it is in the way.
    pub(super) fn begin_job(&self, job: JobRecord, limits: JobLimits) -> io::Result<Begun> {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.records().waiting().count() >= limits.waiting {
            return Ok(Begun::QueueFull);
        }
        let jobs = self.jobs(&job.owner);
        if jobs.len() >= limits.of_owner {
            let Some(oldest) = jobs.iter().rev().find(|job| job.has_left_nothing()) else {
                return Ok(Begun::OwnerFull);
            };
            self.forget_job(oldest)?;
        }
        let id = job.id.clone();
        self.keep_job(job)?;
        self.records().line_up(id);
        Ok(Begun::Queued)
    }

    /// The job whose turn it is, if one waits.
    pub(super) fn next_job(&self) -> Option<String> {
        self.records().waiting().next().map(|job| job.id.clone())
    }

    fn forget_job(&self, job: &JobRecord) -> io::Result<()> {
        self.records().jobs.remove(&job.id);
        fs::remove_file(self.folder.join("jobs").join(format!("{}.json", job.id)))?;
        remove_folder(&self.adapter_of(&job.id))?;
        match &job.result_file {
            // Its owner may have deleted it.
            Some(result) if self.files(&job.owner).iter().any(|file| file.id == *result) => {
                self.forget_file(result)
            }
            _ => Ok(()),
        }
    }

    /// Removes the adapter that a job has left, if it still has one. The job stays.
    pub(super) fn forget_adapter(&self, id: &str) -> io::Result<()> {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut job) = self.job(id) else { return Ok(()) };
        if job.fine_tuned_model.take().is_some() {
            self.keep_job(job)?;
            remove_folder(&self.adapter_of(id))?;
        }
        Ok(())
    }

    /// Removes what a job has written that was forgotten while it came to its end.
    pub(super) fn clear(&self, id: &str) -> io::Result<()> {
        if self.job(id).is_some() { Ok(()) } else { remove_folder(&self.adapter_of(id)) }
    }

    /// Changes a job that is not over, and says whether there is such a one.
    pub(super) fn change(&self, id: &str, change: impl FnOnce(&mut JobRecord)) -> bool {
        let _alone = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut job) = self.job(id).filter(|job| !job.status.is_over()) else { return false };
        change(&mut job);
        if job.status.is_over() {
            job.finished_at = Some(unix_seconds());
        }
        if let Err(error) = self.keep_job(job.clone()) {
            tracing::warn!(%error, id, "a job is not kept on disk");
            self.records().jobs.insert(job.id.clone(), job);
        }
        true
    }

    /// What an error says, but for where on this machine the folder is, which is no matter of who asks.
    pub(super) fn told(&self, error: &anyhow::Error) -> String {
        // Ends in a slash, whether the folder was typed with one or without.
        let prefix = self.folder.join("");
        format!("{error:#}").replace(&*prefix.to_string_lossy(), "")
    }

    /// Where the lines of a file are.
    pub(super) fn lines_of(&self, id: &str) -> PathBuf {
        self.folder.join("files").join(format!("{id}.jsonl"))
    }

    /// Where the adapter of a job comes.
    pub(super) fn adapter_of(&self, id: &str) -> PathBuf {
        self.folder.join("jobs").join(id)
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn records_in<T: DeserializeOwned>(folder: &Path) -> anyhow::Result<Vec<T>> {
    let mut records = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            let record = serde_json::from_slice(&fs::read(&path)?);
            records.push(record.with_context(|| path.display().to_string())?);
        }
    }
    Ok(records)
}

/// Removes a folder with all that is in it, if it is there.
fn remove_folder(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Whole or not at all.
fn write(path: &Path, record: &impl Serialize) -> io::Result<()> {
    let written = path.with_extension("new");
    write_for_owner(&written, &serde_json::to_vec(record)?)?;
    fs::rename(written, path)
}

/// Writes what nobody else on the machine may read.
fn write_for_owner(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(true).mode(0o600).open(path)?.write_all(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    pub(in super::super) fn job(id: &str, owner: &str, status: Status) -> JobRecord {
        JobRecord {
            id: id.to_owned(),
            owner: owner.to_owned(),
            model: "m".to_owned(),
            training_file: "file-1".to_owned(),
            validation_file: Some("file-2".to_owned()),
            result_file: None,
            suffix: None,
            epochs: 1,
            batch: 1,
            learning_rate_multiplier: 1.0,
            seed: 0,
            status,
            created_at: 5,
            finished_at: None,
            error: None,
            fine_tuned_model: None,
        }
    }

    fn file(id: &str) -> FileRecord {
        FileRecord {
            id: id.to_owned(),
            owner: "ann".to_owned(),
            filename: "a.jsonl".to_owned(),
            bytes: 2,
            created_at: 3,
            purpose: Purpose::FineTune,
        }
    }

    /// Keeps everybody from changing a job.
    pub(in super::super) fn hold(store: &Store) -> MutexGuard<'_, ()> {
        store.changing.lock().unwrap()
    }

    /// How many files there are in a folder, whatever they are.
    fn in_folder(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[test]
    fn who_has_as_many_files_as_there_may_be_has_no_more_kept() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let kept = std::thread::scope(|scope| {
            let keep = |number: usize| {
                let store = &store;
                let file = file(&format!("file-{number}"));
                scope.spawn(move || store.keep_file(file, b"{}", 3).unwrap())
            };
            let uploads: Vec<_> = (0..16).map(keep).collect();
            let kept = uploads.into_iter().map(|upload| upload.join().unwrap());
            kept.filter(|kept| *kept).count()
        });
        assert_eq!(kept, 3, "all came at once");
        assert_eq!(in_folder(&folder.path().join("files")), 6, "a record and lines of each");
        let result = FileRecord { purpose: Purpose::FineTuneResults, ..file("file-99") };
        assert!(store.keep_file(result, b"", usize::MAX).unwrap(), "it is for something else");
        let other = FileRecord { owner: "bob".to_owned(), ..file("file-98") };
        assert!(store.keep_file(other, b"{}", 3).unwrap(), "it is somebody else's");
    }

    #[test]
    fn jobs_that_left_nothing_make_room_and_adapters_do_not() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let begin = |id: &str, created_at| {
            let job = JobRecord { created_at, ..job(id, "ann", Status::Queued) };
            let limits = JobLimits { of_owner: 3, waiting: usize::MAX };
            match store.begin_job(job, limits).unwrap() {
                Begun::Queued => true,
                Begun::OwnerFull => false,
                Begun::QueueFull => panic!("any number may wait"),
            }
        };
        assert!(begin("ftjob-1", 1) && begin("ftjob-2", 2) && begin("ftjob-3", 3));
        assert!(!begin("ftjob-4", 4), "all of them wait");
        assert!(store.change("ftjob-1", |job| {
            job.status = Status::Succeeded;
            job.fine_tuned_model = Some("ft:m".to_owned());
            job.result_file = Some("file-1".to_owned());
        }));
        let result = FileRecord { purpose: Purpose::FineTuneResults, ..file("file-1") };
        assert!(store.keep_file(result, b"", usize::MAX).unwrap());
        assert!(!begin("ftjob-4", 4), "one has an adapter");
        assert!(store.change("ftjob-3", |job| job.status = Status::Failed));
        assert!(store.change("ftjob-2", |job| job.status = Status::Cancelled));
        assert!(begin("ftjob-4", 4));
        let ids: Vec<_> = store.jobs("ann").into_iter().map(|job| job.id).collect();
        assert_eq!(ids, ["ftjob-4", "ftjob-3", "ftjob-1"], "the oldest of those made room");
        assert!(!store.adapter_of("ftjob-2").exists() && store.adapter_of("ftjob-3").exists());
        // It was at work until now.
        fs::create_dir(store.adapter_of("ftjob-2")).unwrap();
        store.clear("ftjob-2").unwrap();
        store.clear("ftjob-3").unwrap();
        assert!(!store.adapter_of("ftjob-2").exists() && store.adapter_of("ftjob-3").exists());
        assert!(begin("ftjob-5", 5) && !begin("ftjob-6", 6));
        store.forget_adapter("ftjob-1").unwrap();
        assert!(!store.adapter_of("ftjob-1").exists());
        assert_eq!(store.job("ftjob-1").unwrap().status, Status::Succeeded, "it is remembered");
        assert!(begin("ftjob-6", 6) && store.job("ftjob-1").is_none());
        assert!(store.files("ann").is_empty(), "its result goes with it");
        assert_eq!(in_folder(&folder.path().join("jobs")), 6, "a record and a folder of each");
    }

    #[test]
    fn jobs_wait_in_the_order_in_which_they_came_until_they_are_cancelled() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        let begin = |id: &str, owner: &str| {
            let limits = JobLimits { of_owner: 9, waiting: 3 };
            store.begin_job(job(id, owner, Status::Queued), limits).unwrap()
        };
        let becomes = |id: &str, status| assert!(store.change(id, |job| job.status = status));
        assert_eq!(store.next_job(), None);
        for (id, owner) in [("ftjob-7", "ann"), ("ftjob-2", "bob"), ("ftjob-5", "ann")] {
            assert_eq!(begin(id, owner), Begun::Queued, "{id}");
        }
        assert_eq!(begin("ftjob-1", "bob"), Begun::QueueFull);
        assert!(store.job("ftjob-1").is_none(), "it is not kept");
        assert_eq!(store.next_job().unwrap(), "ftjob-7");
        becomes("ftjob-7", Status::Running);
        assert_eq!(store.next_job().unwrap(), "ftjob-2");
        assert_eq!(begin("ftjob-1", "bob"), Begun::Queued, "one is under way, and waits no more");
        becomes("ftjob-2", Status::Cancelled);
        assert_eq!(store.next_job().unwrap(), "ftjob-5");
        assert_eq!(begin("ftjob-3", "bob"), Begun::Queued, "one was cancelled");
        assert_eq!(begin("ftjob-4", "bob"), Begun::QueueFull);
        becomes("ftjob-5", Status::Cancelled);
        assert_eq!(store.next_job().unwrap(), "ftjob-1");
    }

    #[test]
    fn files_are_needed_until_their_job_is_over() {
        let running = job("ftjob-1", "ann", Status::Running);
        assert_eq!(
            ["file-1", "file-2", "file-3"].map(|file| running.needs(file)),
            [true, true, false]
        );
        assert!(!job("ftjob-1", "ann", Status::Failed).needs("file-1"));
    }

    #[test]
    fn nobody_who_asks_is_told_where_the_folder_is() {
        let folder = tempfile::tempdir().unwrap();
        let typed = folder.path().to_str().unwrap();
        for typed in [typed.to_owned(), format!("{typed}/")] {
            let store = Store::open(Path::new(&typed)).unwrap();
            let lines = store.lines_of("file-1");
            let error = anyhow::anyhow!("no text").context(format!("{}, line 1", lines.display()));
            assert_eq!(store.told(&error), "files/file-1.jsonl, line 1: no text", "{typed}");
        }
    }

    #[test]
    fn records_of_earlier_versions_are_read() {
        let file = r#"{"id":"file-1","owner":"ann","filename":"a","bytes":2,"created_at":3}"#;
        let file: FileRecord = serde_json::from_str(file).unwrap();
        assert_eq!(file.purpose, Purpose::FineTune);
        let mut old = serde_json::to_value(job("ftjob-1", "ann", Status::Succeeded)).unwrap();
        let fields = old.as_object_mut().unwrap();
        assert!(
            fields.remove("validation_file").is_some() && fields.remove("result_file").is_some()
        );
        assert_eq!(serde_json::from_value::<JobRecord>(old).unwrap().validation_file, None);
    }

    #[test]
    fn what_is_kept_is_there_again_and_unfinished_jobs_have_failed() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path()).unwrap();
        assert!(store.keep_file(file("file-1"), b"{}", 1).unwrap());
        store.keep_job(job("ftjob-1", "ann", Status::Running)).unwrap();
        store.keep_job(job("ftjob-2", "bob", Status::Succeeded)).unwrap();
        assert!(!store.change("ftjob-2", |job| job.status = Status::Cancelled), "it is over");

        let Err(refused) = Store::open(folder.path()) else { panic!("two have one folder") };
        assert!(refused.to_string().contains("another process uses the folder"), "{refused:#}");
        assert_eq!(store.job("ftjob-1").unwrap().status, Status::Running);
        let kept = records_in::<JobRecord>(&folder.path().join("jobs")).unwrap();
        assert!(kept.iter().any(|job| job.status == Status::Running), "nobody has failed it");
        drop(store);
        let again = Store::open(folder.path()).unwrap();
        assert_eq!(fs::read(again.lines_of("file-1")).unwrap(), b"{}");
        for path in
            ["files", "files/file-1.json", "files/file-1.jsonl", "jobs", "jobs/ftjob-1.json"]
        {
            let mode = fs::metadata(folder.path().join(path)).unwrap().permissions().mode();
            assert_eq!(mode & 0o077, 0, "others can read {path}");
        }
        assert_eq!((again.files("ann").len(), again.files("bob").len()), (1, 0));
        let left = &again.jobs("ann")[0];
        assert_eq!((left.status, left.finished_at.is_some()), (Status::Failed, true));
        assert_eq!(again.job("ftjob-2").unwrap().status, Status::Succeeded);
        again.forget_file("file-1").unwrap();
        assert!(again.files("ann").is_empty() && !again.lines_of("file-1").exists());
        drop(again);
        fs::write(folder.path().join("jobs/ftjob-3.json"), "half").unwrap();
        let Err(broken) = Store::open(folder.path()) else { panic!("half a record") };
        assert!(format!("{broken:#}").contains("ftjob-3.json"), "{broken:#}");
    }
}
