//! One of some labels for a text.

use std::path::Path;

use serde_json::json;
use umbel_engine::train::AdamW;
use umbel_engine::{Ends, HiddenStates};

use super::{HeadError, Linear, load, save, step};

/// The name of its layer: that of transformers' models for sequences.
const LAYER: &str = "score";

/// A classifier of sequences: a linear layer over the final norm of what left the last block at the last
/// token, as transformers' models for sequence classification have it, with a bias beside.
#[derive(Debug, Clone, PartialEq)]
pub struct Classifier {
    labels: Vec<String>,
    score: Linear,
}

/// What came of some texts whose classes are known.
#[derive(Debug)]
pub struct Learned {
    /// The mean cross-entropy.
    pub loss: f64,
    /// How many had their own class as the likeliest.
    pub right: usize,
    /// The gradient of the loss by what left the last block, for what is learned before it.
    pub gradient: HiddenStates,
}

impl Classifier {
    /// A new classifier over hidden states of this size.
    ///
    /// # Errors
    /// [`HeadError::Labels`] where there is no choice.
    pub fn begin(
        labels: Vec<String>,
        hidden_size: usize,
        settings: AdamW,
        seed: u64,
    ) -> Result<Self, HeadError> {
        let mut distinct = labels.clone();
        distinct.sort_unstable();
        distinct.dedup();
        if labels.len() < 2 || distinct.len() != labels.len() {
            return Err(HeadError::Labels);
        }
        let score = Linear::begin(labels.len(), hidden_size, settings, seed)?;
        Ok(Self { labels, score })
    }

    /// What the classes are called, by their numbers.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    /// Its layer.
    #[must_use]
    pub const fn score(&self) -> &Linear {
        &self.score
    }

    /// The same, to be changed.
    pub const fn score_mut(&mut self) -> &mut Linear {
        &mut self.score
    }

    /// The class of each of some texts. `left` is what left the last block, text after text, each of which
    /// has so many tokens.
    ///
    /// # Errors
    /// [`HeadError`] where the texts do not fit, or the end of the model cannot be computed.
    pub fn classify(
        &self,
        ends: &Ends,
        left: &HiddenStates,
        lengths: &[u32],
    ) -> Result<Vec<usize>, HeadError> {
        let normed = ends.normed(&last_rows(left, lengths)?)?.concat();
        let scores = self.score.forward(&normed)?;
        Ok(scores.chunks_exact(self.labels.len()).map(likeliest).collect())
    }

    /// Learns from texts whose classes are known: the gradient is added to what was gathered.
    ///
    /// # Errors
    /// As [`Classifier::classify`].
    pub fn learn(
        &mut self,
        ends: &Ends,
        left: &HiddenStates,
        lengths: &[u32],
        classes: &[usize],
    ) -> Result<Learned, HeadError> {
        let count = self.labels.len();
        if let Some(&found) = classes.iter().find(|class| **class >= count) {
            return Err(HeadError::Class { found, count });
        }
        if classes.len() != lengths.len() {
            return Err(HeadError::Texts);
        }
        let last = last_rows(left, lengths)?;
        let normed = ends.normed(&last)?.concat();
        let mut scores = self.score.forward(&normed)?;
        let (mut loss, mut right) = (0.0, 0);
        for (scores, &class) in scores.chunks_exact_mut(count).zip(classes) {
            right += usize::from(likeliest(scores) == class);
            loss += cross_entropy(scores, class, classes.len());
        }
        let of_normed = self.score.backward(&normed, &scores)?;
        let of_normed = HiddenStates::from_values(of_normed, left.hidden_size());
        let of_normed = of_normed.map_err(|_| HeadError::Texts)?;
        let of_last = ends.normed_gradient(&last, &of_normed)?.to_values();
        let width = left.hidden_size();
        let mut gradient = vec![0.0; left.token_count() * width];
        for (row, values) in last_places(lengths).zip(of_last.chunks_exact(width)) {
            gradient[row * width..][..width].copy_from_slice(values);
        }
        let gradient = HiddenStates::from_values(gradient, width).map_err(|_| HeadError::Texts)?;
        Ok(Learned { loss: loss / classes.len() as f64, right, gradient })
    }

    /// Takes a step by what was gathered; the norm of the gradients.
    ///
    /// # Errors
    /// As [`step`].
    pub fn step(&mut self, learning_rate: f64, clip: f64) -> Result<f64, HeadError> {
        step(&mut [&mut self.score], learning_rate, clip)
    }

    /// Writes it into a folder.
    ///
    /// # Errors
    /// As [`save`].
    pub fn save(&self, folder: &Path) -> Result<(), HeadError> {
        save(folder, &json!({ "labels": self.labels }), &[(LAYER, &self.score)])
    }

    /// Reads one from a folder, for a model with hidden states of this size. Its optimizer begins anew.
    ///
    /// # Errors
    /// [`HeadError`] where there is none, or it is another model's.
    pub fn load(folder: &Path, hidden_size: usize, settings: AdamW) -> Result<Self, HeadError> {
        let (about, mut layers) = load(folder, settings)?;
        let labels: Option<Vec<_>> = about["labels"].as_array().and_then(|labels| {
            labels.iter().map(|label| label.as_str().map(ToOwned::to_owned)).collect()
        });
        let labels = labels.ok_or(HeadError::Malformed { what: "its labels" })?;
        let score = layers.remove(LAYER).ok_or(HeadError::Malformed { what: "its layer" })?;
        if score.rows() != labels.len() {
            return Err(HeadError::Malformed { what: "its labels" });
        }
        if score.columns() != hidden_size {
            return Err(HeadError::Malformed { what: "its size, which is of another model" });
        }
        Ok(Self { labels, score })
    }
}

/// Where the last token of each text is.
fn last_places(lengths: &[u32]) -> impl Iterator<Item = usize> {
    lengths.iter().scan(0, |end, &tokens| {
        *end += tokens as usize;
        Some(*end - 1)
    })
}

fn last_rows(left: &HiddenStates, lengths: &[u32]) -> Result<HiddenStates, HeadError> {
    let tokens: u64 = lengths.iter().map(|&tokens| u64::from(tokens)).sum();
    if lengths.is_empty() || lengths.contains(&0) || tokens != left.token_count() as u64 {
        return Err(HeadError::Texts);
    }
    let rows: Result<Vec<_>, _> =
        last_places(lengths).map(|place| left.rows(place..place + 1)).collect();
    let rows = rows.map_err(|_| HeadError::Texts)?;
    HiddenStates::concat(&rows).map_err(|_| HeadError::Texts)
}

fn likeliest(scores: &[f32]) -> usize {
    let best = scores.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
    best.map_or(0, |(class, _)| class)
}

/// The negative logarithm of the probability of `class`; in the place of the scores come their gradients, of
/// the mean over `texts`.
#[expect(clippy::cast_possible_truncation, reason = "gradients are binary32")]
fn cross_entropy(scores: &mut [f32], class: usize, texts: usize) -> f64 {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let above: Vec<f64> = scores.iter().map(|score| f64::from(score - largest)).collect();
    let total: f64 = above.iter().map(|above| above.exp()).sum();
    for (place, (score, above)) in scores.iter_mut().zip(&above).enumerate() {
        let expected = f64::from(u8::from(place == class));
        *score = ((above.exp() / total - expected) / texts as f64) as f32;
    }
    total.ln() - above[class]
}
