//! Pseudo-random data that guest and host can both make, from any offset, and its checksum.
//!
//! The data are 64-bit little-endian words; word `i` of seed `s` is the `i + 1`st output of
//! SplitMix64 started at `s` (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number
//! Generators", 2014). A word depends on its place alone, so any part can be made or checked
//! without what comes before it. The checksum is CRC-32 as in zlib.

/// SplitMix64's increment.
const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// Word number `index` of the data of `seed`.
pub const fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(GAMMA));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Fills `buffer` with the data of `seed` from byte `offset` on.
pub fn fill(seed: u64, offset: u64, buffer: &mut [u8]) {
    let mut index = offset / 8;
    let skip = (offset % 8) as usize;
    let head = if skip == 0 { 0 } else { buffer.len().min(8 - skip) };
    let (first, rest) = buffer.split_at_mut(head);
    if head > 0 {
        first.copy_from_slice(&word(seed, index).to_le_bytes()[skip..skip + head]);
        index += 1;
    }
    for chunk in rest.chunks_mut(8) {
        chunk.copy_from_slice(&word(seed, index).to_le_bytes()[..chunk.len()]);
        index += 1;
    }
}

/// The checksum of the first `bytes` bytes of the data of `seed`.
pub fn crc32(seed: u64, bytes: u64) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = [0; 8192];
    let mut offset = 0;
    while offset < bytes {
        let part = &mut buffer[..(bytes - offset).min(8192) as usize];
        fill(seed, offset, part);
        hasher.update(part);
        offset += part.len() as u64;
    }
    hasher.finalize()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn words_are_splitmix64s() {
        // The published test vector for seed 1234567.
        let expected = [6_457_827_717_110_365_317, 3_203_168_211_198_807_973];
        assert_eq!([word(1_234_567, 0), word(1_234_567, 1)], expected);
    }

    #[test]
    fn the_checksum_is_that_of_the_data() {
        let mut data = vec![0; 20_001];
        fill(7, 0, &mut data);
        assert_eq!(crc32(7, 20_001), crc32fast::hash(&data));
        assert_ne!(crc32(8, 20_001), crc32fast::hash(&data));
    }

    proptest! {
        #[test]
        fn any_part_equals_the_whole(seed: u64, start in 0usize..200, length in 0usize..200) {
            let mut whole = vec![0; 400];
            fill(seed, 0, &mut whole);
            let mut part = vec![0; length];
            fill(seed, start as u64, &mut part);
            prop_assert_eq!(&part[..], &whole[start..start + length]);
        }
    }
}
