//! Vectors as bytes: little-endian f32, of length 1.

/// Scales a vector to length 1 and writes it down. A vector of zeros stays one.
pub(crate) fn to_bytes(vector: Vec<f32>) -> Vec<u8> {
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    let scale = if length > 0.0 { length.recip() } else { 1.0 };
    let mut bytes = Vec::with_capacity(vector.len() * size_of::<f32>());
    for x in vector {
        bytes.extend_from_slice(&(x * scale).to_le_bytes());
    }
    bytes
}

/// Reads a vector; bytes that don't make a whole number are left out.
pub(crate) fn from_bytes(bytes: &[u8]) -> Vec<f32> {
    let (numbers, _rest) = bytes.as_chunks::<4>();
    numbers.iter().copied().map(f32::from_le_bytes).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_come_back_with_length_one() {
        assert_eq!(from_bytes(&to_bytes(vec![3.0, 0.0, -4.0])), [0.6, 0.0, -0.8]);
        assert_eq!(from_bytes(&to_bytes(vec![0.0, 0.0])), [0.0, 0.0]);
    }
}
