//! The model card that lies beside an adapter, as PEFT writes one, with what is known of the training.

use std::fs;
use std::io;
use std::path::Path;

use serde_json::{Value, json};
use umbel_shard::ModelSource;

use super::begin::{DATA_SET, DORA, METHOD};
use super::metrics::{History, METRICS_FILE};
use super::plot::PLOT_FILE;

/// Where hubs look for it.
const CARD_FILE: &str = "README.md";

/// By this line a card is known for one that may be replaced.
const MARK: &str =
    "<!-- Written by umbel train, and written anew by it while this line is here. -->";

/// What a card says.
pub(super) struct Card<'a> {
    /// The model that the adapter is for.
    pub(super) base: String,
    /// What decides which step comes after which.
    pub(super) identity: &'a Value,
    /// Steps that were taken, and the one that the adapter is of.
    pub(super) steps: (u64, u64),
    pub(super) history: &'a History,
}

/// Who a model is to those who read the card: its name on the hub, or that of its file or folder, and
/// never a path.
pub(super) fn base_of(source: &ModelSource) -> String {
    let last = |path: &Path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // A line of the card has to stay one.
        name.chars().filter(|character| !character.is_control()).collect()
    };
    match source {
        ModelSource::Catalogue(entry) => entry.repository.to_owned(),
        ModelSource::Hub(repository) => format!("{}/{}", repository.owner(), repository.name()),
        ModelSource::Folder(path) | ModelSource::GgufFile(path) => last(path),
    }
}

impl Card<'_> {
    /// Writes the card, unless there is one that somebody else has written.
    pub(super) fn write(&self, folder: &Path) -> io::Result<()> {
        let path = folder.join(CARD_FILE);
        match fs::read_to_string(&path) {
            Ok(text) if !text.contains(MARK) => {
                tracing::info!("README.md is somebody else's and stays as it is");
                return Ok(());
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        fs::write(path, self.text())
    }

    fn text(&self) -> String {
        let Self { base, identity, steps: (taken, of), history } = self;
        // A string of JSON is one of YAML too, whatever is in it.
        let [quoted, tag] =
            [base.clone(), format!("base_model:adapter:{base}")].map(|text| json!(text));
        let (method, what) = match identity[METHOD].as_str() {
            None if identity[DORA] == true => ("dora", "A DoRA in PEFT's files"),
            None => ("lora", "A LoRA in PEFT's files"),
            Some("ptune") => ("prompt-tuning", "A learned prompt in PEFT's files"),
            Some(_) => {
                ("deep-prompt-tuning", "A learned prompt for each block, which PEFT does not read")
            }
        };
        let mut text = format!(
            "---\nbase_model: {quoted}\nlibrary_name: peft\npipeline_tag: text-generation\ntags:\n\
             - {tag}\n- {method}\n- umbel\n---\n\n{MARK}\n\n# An adapter for {base}\n\n\
             {what}; the model's own weights are not in them.\n\n\
             ## How it was trained\n\n- steps: {of} of {taken} that were taken\n"
        );
        // Of a digest nobody learns anything who has not the data.
        let said = identity.as_object().into_iter().flatten().filter(|(key, _)| *key != DATA_SET);
        for (key, value) in said {
            text.push_str(&format!("- {key}: {}\n", shown(value)));
        }
        text.push_str(
            "\nOf texts and tokens the second number is for validation.\n\n## Results\n\n",
        );
        let validation = history.validations.range(..=of).next_back();
        if let (Some((_, first)), Some((step, last))) =
            (history.validations.first_key_value(), validation)
        {
            text.push_str(&format!(
                "Cross-entropy of texts that were not learned: {first:.4} nats a token at the first \
                 look, {last:.4} behind step {step}.\n\n"
            ));
        }
        text.push_str(&format!(
            "![The loss of each step]({PLOT_FILE})\n\nAll numbers are in `{METRICS_FILE}`.\n\n\
             ## How to use it\n\nWith Umbel, in a swarm (`--join ADDR`) or in one process:\n\n\
             ```sh\numbel generate --local --adapter . --prompt 'Hello'\n```\n"
        ));
        if method != "deep-prompt-tuning" {
            text.push_str(&format!(
                "\nWith PEFT:\n\n```python\nfrom peft import PeftModel\n\
                 from transformers import AutoModelForCausalLM\n\n\
                 base = AutoModelForCausalLM.from_pretrained({quoted})\n\
                 model = PeftModel.from_pretrained(base, \".\")\n```\n"
            ));
        }
        text
    }
}

/// A value without the quotes of JSON.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(shown).collect::<Vec<_>>().join(", "),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(base: &str, folder: &Path) -> String {
        let identity = json!({ "epochs": 3, "target modules": ["q_proj", "v_proj"] });
        let validations = [(0, 3.0), (4, 2.0), (8, 2.5)].into();
        let history = History { losses: [(1, 3.0)].into(), validations, steps: None };
        let card =
            Card { base: base.to_owned(), identity: &identity, steps: (8, 4), history: &history };
        card.write(folder).unwrap();
        fs::read_to_string(folder.join(CARD_FILE)).unwrap()
    }

    #[test]
    fn a_card_says_what_was_learned_and_of_the_step_that_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let text = card("owner/name", folder.path());
        for part in [
            "base_model: \"owner/name\"\n",
            "library_name: peft",
            "- \"base_model:adapter:owner/name\"",
            "- target modules: q_proj, v_proj\n",
            "- steps: 4 of 8 ",
            "3.0000 nats a token at the first look, 2.0000 behind step 4",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert!(card("another", folder.path()).contains("# An adapter for another"));
    }

    #[test]
    fn a_readme_of_somebody_else_stays() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(CARD_FILE), "# Mine\n").unwrap();
        assert_eq!(card("owner/name", folder.path()), "# Mine\n");
        let file = base_of(&ModelSource::GgufFile("/somewhere/of mine/a\nb.gguf".into()));
        assert_eq!(file, "ab.gguf", "no path, and one line");
    }
}
