//! Layers of one's own behind blocks of a model: linear ones to build with, and a classifier of sequences.
//!
//! A head belongs to whoever trains it, and its blocks to a swarm: [`FrozenBlocks`](super::FrozenBlocks) take
//! texts forward, the head says what it makes of what left them, and where something before the blocks is to
//! be learned as well, such as a prompt, the gradient goes back through them.

mod classifier;
mod files;

use umbel_coordinator::random::Random;
use umbel_engine::EndsError;
use umbel_engine::train::optimizer::clip_factor;
use umbel_engine::train::{AdamW, LossError, RowOptimizer, StepError};

pub use classifier::{Classifier, Learned};
pub use files::{HEAD_FILE, load, save};

/// `y = W x + b`, with its gradients and its optimizer, in binary32.
#[derive(Debug, Clone, PartialEq)]
pub struct Linear {
    rows: usize,
    columns: usize,
    /// W, `[rows, columns]`, row by row, and behind it b, `[rows]`.
    values: Vec<f32>,
    gradients: Vec<f32>,
    optimizer: RowOptimizer,
}

impl Linear {
    /// A new layer: W is uniform between plus and minus the inverse root of its columns, and b is zero.
    ///
    /// # Errors
    /// [`HeadError::Empty`] where it has no rows or no columns.
    pub fn begin(
        rows: usize,
        columns: usize,
        settings: AdamW,
        seed: u64,
    ) -> Result<Self, HeadError> {
        let mut random = Random::new(seed);
        let bound = 1.0 / (columns as f64).sqrt();
        #[expect(clippy::cast_possible_truncation, reason = "layers are binary32")]
        let mut value = || ((2.0 * random.unit() - 1.0) * bound) as f32;
        let mut values: Vec<f32> = (0..rows * columns).map(|_| value()).collect();
        values.resize(rows * (columns + 1), 0.0);
        Self::of(rows, columns, values, settings)
    }

    fn of(
        rows: usize,
        columns: usize,
        values: Vec<f32>,
        settings: AdamW,
    ) -> Result<Self, HeadError> {
        if rows == 0 || columns == 0 {
            return Err(HeadError::Empty);
        }
        assert_eq!(values.len(), rows * (columns + 1), "W and b");
        let (gradients, optimizer) =
            (vec![0.0; values.len()], RowOptimizer::new(settings, values.len()));
        Ok(Self { rows, columns, values, gradients, optimizer })
    }

    /// Values of what it gives for a row.
    #[must_use]
    pub const fn rows(&self) -> usize {
        self.rows
    }

    /// Values of a row that it takes.
    #[must_use]
    pub const fn columns(&self) -> usize {
        self.columns
    }

    /// W row by row, and behind it b.
    #[must_use]
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The same, to be changed.
    pub fn values_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// The gradients that were gathered since the last step, in the order of the values.
    #[must_use]
    pub fn gradients(&self) -> &[f32] {
        &self.gradients
    }

    /// From `[inputs, columns]` to `[inputs, rows]`.
    ///
    /// # Errors
    /// [`HeadError::Shape`] where `input` has no whole rows.
    pub fn forward(&self, input: &[f32]) -> Result<Vec<f32>, HeadError> {
        self.check(input.len(), self.columns)?;
        let (weight, bias) = self.values.split_at(self.rows * self.columns);
        let mut output = Vec::with_capacity(input.len() / self.columns * self.rows);
        for input in input.chunks_exact(self.columns) {
            let rows = weight.chunks_exact(self.columns).zip(bias);
            output.extend(rows.map(|(row, bias)| bias + dot(row, input)));
        }
        Ok(output)
    }

    /// From the gradient of what it gave to that of `input`; its own are added to those that were gathered.
    ///
    /// # Errors
    /// [`HeadError::Shape`] where the two have not as many rows.
    pub fn backward(&mut self, input: &[f32], gradient: &[f32]) -> Result<Vec<f32>, HeadError> {
        self.check(input.len(), self.columns)?;
        if gradient.len() != input.len() / self.columns * self.rows {
            return Err(HeadError::Shape { found: gradient.len(), width: self.rows });
        }
        let (columns, mut of_input) = (self.columns, vec![0.0; input.len()]);
        let weight = &self.values[..self.rows * columns];
        let (of_weight, of_bias) = self.gradients.split_at_mut(self.rows * columns);
        let rows = input.chunks_exact(columns).zip(of_input.chunks_exact_mut(columns));
        for ((input, of_input), gradient) in rows.zip(gradient.chunks_exact(self.rows)) {
            let matrices = weight.chunks_exact(columns).zip(of_weight.chunks_exact_mut(columns));
            for (((row, of_row), of_bias), &gradient) in matrices.zip(&mut *of_bias).zip(gradient) {
                *of_bias += gradient;
                of_row.iter_mut().zip(input).for_each(|(sum, value)| *sum += gradient * value);
                of_input.iter_mut().zip(row).for_each(|(sum, value)| *sum += gradient * value);
            }
        }
        Ok(of_input)
    }

    fn check(&self, found: usize, width: usize) -> Result<(), HeadError> {
        let whole = found.is_multiple_of(width);
        if whole { Ok(()) } else { Err(HeadError::Shape { found, width }) }
    }
}

/// Takes a step of all layers of a head, whose gradients are scaled down together where their norm is above
/// `clip`; they are gathered anew from then on. Returns the norm before that.
///
/// # Errors
/// [`HeadError::Step`] where a gradient is no number; then the gradients are dropped, and nothing else has
/// changed.
pub fn step(layers: &mut [&mut Linear], learning_rate: f64, clip: f64) -> Result<f64, HeadError> {
    let squares = layers.iter().flat_map(|layer| &layer.gradients);
    let squares = squares.map(|&value| f64::from(value).powi(2)).sum::<f64>();
    if !squares.is_finite() {
        layers.iter_mut().for_each(|layer| layer.gradients.fill(0.0));
        return Err(StepError::NotFinite.into());
    }
    let factor = clip_factor(squares, clip);
    for layer in layers.iter_mut() {
        let Linear { values, gradients, optimizer, .. } = &mut **layer;
        let stepped = optimizer.step(values, gradients, (learning_rate, factor));
        gradients.fill(0.0);
        stepped?;
    }
    Ok(squares.sqrt())
}

fn dot(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(left, right)| left * right).sum()
}

/// A head that cannot be made, asked, trained, read or written.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// Nothing would be computed.
    #[error("a layer has at least one row and one column")]
    Empty,
    /// Rows of another width.
    #[error("{found} values are no whole rows of {width}")]
    Shape {
        /// How many there are.
        found: usize,
        /// How many a row has.
        width: usize,
    },
    /// No choice, or the same one twice.
    #[error("a classifier has two labels at least, each once")]
    Labels,
    /// Texts that are empty, not as long together as there are rows, or not one for each class.
    #[error("the lengths of the texts do not fit what left the blocks, or the classes")]
    Texts,
    /// A class without a label.
    #[error("class {found} is not among the {count} labels")]
    Class {
        /// Its number.
        found: usize,
        /// How many there are.
        count: usize,
    },
    /// The end of the model could not be computed.
    #[error(transparent)]
    Ends(#[from] EndsError),
    /// The gradient did not fit.
    #[error(transparent)]
    Loss(#[from] LossError),
    /// The optimizer did not take the step.
    #[error(transparent)]
    Step(#[from] StepError),
    /// A file that could not be read or written.
    #[error("{HEAD_FILE} cannot be read or written")]
    File(#[from] std::io::Error),
    /// A file that is no head, or not the one that is wanted.
    #[error("{HEAD_FILE} is broken or of something else: {what}")]
    Malformed {
        /// Which part of it.
        what: &'static str,
    },
}

#[cfg(test)]
mod tests;
