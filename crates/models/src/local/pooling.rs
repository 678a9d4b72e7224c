use super::folder::Pooling;

/// Makes one vector of a sentence's token vectors, given as rows of `width` numbers, and
/// scales it to length 1. No rows make a vector of zeros.
pub(super) fn pool(rows: &[f32], width: usize, pooling: Pooling) -> Vec<f32> {
    let mut vector = match pooling {
        Pooling::Mean => mean(rows, width),
        Pooling::First => rows.get(..width).map_or_else(|| vec![0.0; width], <[f32]>::to_vec),
    };
    normalise(&mut vector);
    vector
}

/// Adds the rows up and divides by their number.
fn mean(rows: &[f32], width: usize) -> Vec<f32> {
    let mut sum = vec![0.0; width];
    for row in rows.chunks_exact(width) {
        add(&mut sum, row);
    }
    let count = (rows.len() / width).max(1) as f32;
    for value in &mut sum {
        *value /= count;
    }
    sum
}

/// Adds `row` to `sum`, number by number.
pub(super) fn add(sum: &mut [f32], row: &[f32]) {
    for (total, value) in sum.iter_mut().zip(row) {
        *total += value;
    }
}

/// Scales to length 1; zeros stay zeros.
pub(super) fn normalise(vector: &mut [f32]) {
    let length = vector.iter().map(|value| value * value).sum::<f32>().sqrt();
    if length > 0.0 {
        for value in vector {
            *value /= length;
        }
    }
}
