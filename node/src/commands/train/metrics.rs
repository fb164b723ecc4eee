//! What a training has come to, as JSON lines: written step by step, and read again for the plot.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

use serde_json::Value;

/// One JSON object for each step and each validation.
pub(crate) const METRICS_FILE: &str = "metrics.jsonl";

/// The file under way.
pub(super) struct Metrics(File);

impl Metrics {
    /// Adds to what an earlier part of the training has written, where it `resumes`. What another has left
    /// that came to no checkpoint is not of this one.
    pub(super) fn open(folder: &Path, resumes: bool) -> io::Result<Self> {
        let path = folder.join(METRICS_FILE);
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        if !resumes {
            file.set_len(0)?;
        }
        let mut metrics = Self(file.try_clone()?);
        if file.seek(SeekFrom::End(0))? > 0 {
            file.seek(SeekFrom::End(-1))?;
            let mut last = [0];
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                // Half a line of a process that was killed.
                metrics.append(b"\n")?;
            }
        }
        Ok(metrics)
    }

    /// Writes a line, or nothing.
    pub(super) fn write(&mut self, line: &Value) -> io::Result<()> {
        self.append(format!("{line}\n").as_bytes())
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        let before = self.0.metadata()?.len();
        self.0.write_all(bytes).inspect_err(|_| {
            // Half a line would make the next one unreadable too; a disk that does not even let go of
            // bytes has told so already.
            let _stays = self.0.set_len(before);
        })
    }
}

/// The losses of a training, by its steps. Of a step that was taken again behind a checkpoint the last
/// line counts.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct History {
    pub(crate) losses: BTreeMap<u64, f64>,
    pub(crate) validations: BTreeMap<u64, f64>,
    /// Steps of the whole training, once one was taken.
    pub(crate) steps: Option<u64>,
}

impl History {
    /// Reads what was written up to a step.
    pub(crate) fn read(folder: &Path, steps: u64) -> io::Result<Self> {
        let mut history = Self::default();
        for line in BufReader::new(File::open(folder.join(METRICS_FILE))?).lines() {
            let line = line?;
            // Half a line of a process that was killed says nothing.
            let Ok(line) = serde_json::from_str::<Value>(&line) else { continue };
            let Some(step) = line["step"].as_u64().filter(|&step| step <= steps) else { continue };
            if let Some(loss) = line["loss"].as_f64() {
                history.losses.insert(step, loss);
                history.steps = line["steps"].as_u64().or(history.steps);
            }
            if let Some(loss) = line["validation_loss"].as_f64() {
                history.validations.insert(step, loss);
            }
        }
        Ok(history)
    }

    /// The steps that were taken or validated behind, with the losses of each.
    pub(crate) fn by_step(&self) -> impl Iterator<Item = (u64, Option<f64>, Option<f64>)> {
        let steps: BTreeSet<_> = self.losses.keys().chain(self.validations.keys()).collect();
        let loss = |losses: &BTreeMap<u64, f64>, step| losses.get(step).copied();
        steps
            .into_iter()
            .map(move |step| (*step, loss(&self.losses, step), loss(&self.validations, step)))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    #[test]
    fn steps_that_were_taken_again_and_half_lines_leave_one_history() {
        let folder = tempfile::tempdir().unwrap();
        let mut metrics = Metrics::open(folder.path(), false).unwrap();
        metrics.write(&json!({ "step": 0, "validation_loss": 4.0 })).unwrap();
        metrics.write(&json!({ "step": 1, "loss": 3.0 })).unwrap();
        metrics.write(&json!({ "step": 2, "loss": 9.0 })).unwrap();
        let path = folder.path().join(METRICS_FILE);
        let mut killed = fs::read(&path).unwrap();
        killed.extend(br#"{"step": 3, "lo"#);
        fs::write(&path, killed).unwrap();
        let mut metrics = Metrics::open(folder.path(), true).unwrap();
        metrics.write(&json!({ "step": 2, "steps": 9, "loss": 2.0 })).unwrap();
        metrics.write(&json!({ "step": 3, "steps": 9, "loss": 1.0 })).unwrap();
        let history = History::read(folder.path(), 2).unwrap();
        assert_eq!(history.losses, [(1, 3.0), (2, 2.0)].into());
        assert_eq!(history.validations, [(0, 4.0)].into());
        assert_eq!(history.steps, Some(9));

        Metrics::open(folder.path(), false).unwrap();
        let history = History::read(folder.path(), 9).unwrap();
        assert_eq!(history, History::default(), "another training begins");
    }
}
