//! The files of a model.

use std::path::PathBuf;

use umbel_shard::{Model, ModelSource, PartsNeeded, Silent};

use super::Finding;
use crate::config::Config;

pub(super) async fn look(source: ModelSource, config: &Config) -> Vec<Finding> {
    let config = config.clone();
    let looking = tokio::task::spawn_blocking(move || match whereabouts(&source, &config) {
        Whereabouts::Here => judge(&source, open(&source, &config)),
        Whereabouts::Elsewhere(what) => what,
    });
    vec![looking.await.expect("files are read without panics")]
}

/// Whether the files can be read without fetching any.
enum Whereabouts {
    Here,
    Elsewhere(Finding),
}

fn whereabouts(source: &ModelSource, config: &Config) -> Whereabouts {
    let (here, what): (Option<PathBuf>, _) = match source {
        ModelSource::Catalogue(entry) => {
            let what =
                format!("{} has not been fetched: {} MB", entry.name, entry.file.bytes / 1_000_000);
            (entry.file_in(&config.cache()), what)
        }
        ModelSource::Hub(repository) => {
            // What of it is here is known only to who asks the hub for a list.
            (
                None,
                format!("{}/{} is fetched as far as needed", repository.owner(), repository.name()),
            )
        }
        ModelSource::Folder(path) | ModelSource::GgufFile(path) => {
            (Some(path.clone()), String::new())
        }
    };
    match here {
        Some(_) => Whereabouts::Here,
        None => {
            let advice = "the first `umbel serve` or `umbel inspect` fetches it";
            Whereabouts::Elsewhere(Finding::note("model", what, advice))
        }
    }
}

/// The name and the blocks of a model that can be read.
fn open(source: &ModelSource, config: &Config) -> Result<(String, u32), String> {
    let parts = PartsNeeded { tokenizer: true, ..PartsNeeded::nothing() };
    match Model::open(source, &config.cache(), parts, &Silent) {
        Ok(model) => {
            Ok((format!("{}, id {}", model.name(), model.id()), model.config().block_count))
        }
        Err(error) => Err(umbel_protocol::error::in_one_line(&error)),
    }
}

fn judge(source: &ModelSource, opened: Result<(String, u32), String>) -> Finding {
    match opened {
        Ok((name, blocks)) => Finding::good("model", format!("{blocks} blocks of {name}")),
        Err(error) => {
            let advice = match source {
                ModelSource::Catalogue(_) | ModelSource::Hub(_) => {
                    "delete its folder under --cache-dir, and it is fetched anew"
                }
                ModelSource::Folder(_) | ModelSource::GgufFile(_) => "get the files once more",
            };
            Finding::bad("model", format!("it cannot be read: {error}"), advice)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;

    #[test]
    fn files_that_cannot_be_read_are_bad_and_say_why() {
        let source = ModelSource::Folder("here".into());
        let finding = judge(&source, Err("config.json is missing".to_owned()));
        assert_eq!(finding.grade, Grade::Bad);
        assert!(finding.what.contains("config.json"), "{finding}");
        let finding = judge(&source, Ok(("a-model".to_owned(), 4)));
        assert_eq!((finding.grade, finding.what.as_str()), (Grade::Good, "4 blocks of a-model"));
    }
}
