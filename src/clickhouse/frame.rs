//! ClickHouse's own frames around compressed bytes, as its native protocol and `decompress=1` of
//! its HTTP interface expect them: checksum, method, both sizes, LZ4.

/// The length of a frame's header, after the checksum: method and two sizes.
const HEAD_BYTES: usize = 9;
const CHECKSUM_BYTES: usize = 16;
const METHOD_LZ4: u8 = 0x82;

/// One frame that holds `data`.
pub fn lz4(data: &[u8]) -> Vec<u8> {
    let start = CHECKSUM_BYTES + HEAD_BYTES;
    let mut frame = vec![0; start + lz4_flex::block::get_maximum_output_size(data.len())];
    let length = lz4_flex::block::compress_into(data, &mut frame[start..])
        .expect("there is room for what cannot be compressed");
    frame.truncate(start + length);
    let size = |bytes: usize| u32::try_from(bytes).expect("a frame is far below 4 GiB");
    frame[CHECKSUM_BYTES] = METHOD_LZ4;
    frame[CHECKSUM_BYTES + 1..][..4].copy_from_slice(&size(HEAD_BYTES + length).to_le_bytes());
    frame[CHECKSUM_BYTES + 5..][..4].copy_from_slice(&size(data.len()).to_le_bytes());
    // Its halves change places.
    let checksum = cityhash_rs::cityhash_102_128(&frame[CHECKSUM_BYTES..]).rotate_left(64);
    frame[..CHECKSUM_BYTES].copy_from_slice(&checksum.to_le_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_says_what_it_holds() {
        let frame = lz4(&[7; 1000]);
        assert_eq!(frame[16], 0x82);
        let size = |at: usize| u32::from_le_bytes(frame[at..at + 4].try_into().unwrap()) as usize;
        assert_eq!((size(17) + 16, size(21)), (frame.len(), 1000));
        let inside = lz4_flex::block::decompress(&frame[25..], 1000).unwrap();
        assert_eq!(inside, [7; 1000]);
    }
}
