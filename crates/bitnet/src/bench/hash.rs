//! A short name for outputs, to see at a glance that two are the same.

/// FNV-1a of 64 bits as 16 hexadecimal digits.
pub fn hash(bytes: impl IntoIterator<Item = u8>) -> String {
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    format!("{:016x}", bytes.into_iter().fold(0xcbf2_9ce4_8422_2325, fold))
}

/// Of token ids.
pub fn of_ids(ids: &[u32]) -> String {
    hash(ids.iter().flat_map(|id| id.to_le_bytes()))
}

/// Of floats, to the bit.
pub fn of_floats(values: &[f32]) -> String {
    hash(values.iter().flat_map(|value| value.to_bits().to_le_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_hashes() {
        assert_eq!(hash([]), "cbf29ce484222325");
        assert_eq!(hash(*b"foobar"), "85944171f73967e8");
        assert_ne!(of_floats(&[0.0]), of_floats(&[-0.0]));
    }
}
