use std::sync::Arc;

use ndarray::Array2;

use super::{
    Encoder,
    folder::{ModelFolder, load_error, read},
    pooling::{add, normalise},
    weights::Weights,
};
use crate::ModelError;

/// A vector for each token; a text's vector is their mean, scaled to length 1.
///
/// Blind to the order of words, and a hundred times as fast as a transformer.
pub(super) struct Table {
    vectors: Array2<f32>,
}

impl Table {
    /// Loads the one matrix of the folder's safetensors file, tokens by dimensions.
    pub(super) fn load(folder: &ModelFolder) -> Result<Self, ModelError> {
        let path = folder.weights_path();
        let bytes = read(&path)?;
        let weights = Weights::parse(&path, &bytes)?;
        let names = weights.names();
        let [name] = names.as_slice() else {
            let count = names.len();
            return Err(load_error(
                &path,
                format!("has {count} tensors; a token table has one, and a BERT needs config.json beside it"),
            ));
        };
        let vectors = weights.matrix(name, None, None)?;
        if vectors.is_empty() {
            return Err(load_error(&path, "the token table is empty"));
        }
        Ok(Self { vectors })
    }

    pub(super) fn dimensions(&self) -> usize {
        self.vectors.ncols()
    }

    fn embed(&self, ids: &[u32]) -> Vec<f32> {
        let mut vector = vec![0.0; self.dimensions()];
        let last = self.vectors.nrows() - 1;
        for &id in ids {
            // Ids beyond the table mean its last row, as in the reference implementation.
            let row = self.vectors.row((id as usize).min(last));
            if let Some(row) = row.as_slice() {
                add(&mut vector, row);
            }
        }
        // The sum points where the mean points, and only the direction is left below.
        normalise(&mut vector);
        vector
    }
}

/// Reads the table on one thread.
pub(super) struct Runner(Arc<Table>);

impl Runner {
    pub(super) fn new(table: &Arc<Table>) -> Self {
        Self(Arc::clone(table))
    }
}

impl Encoder for Runner {
    fn encode(&mut self, texts: &[Vec<u32>]) -> Result<Vec<Vec<f32>>, ModelError> {
        Ok(texts.iter().map(|ids| self.0.embed(ids)).collect())
    }
}
