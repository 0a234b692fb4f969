//! Makes the checksums of a mutated container right, so that the fuzzer gets past them.

/// `bytes` with the checksums that their content calls for, as far as they have a table.
pub fn reseal(bytes: &[u8]) -> Vec<u8> {
    let mut sealed = bytes.to_vec();
    if sealed.len() < 32 {
        return sealed;
    }
    let len = sealed.len() as u64;
    sealed[16..24].copy_from_slice(&len.to_le_bytes());
    let sections = u32::from_le_bytes([sealed[12], sealed[13], 0, 0]) as usize;
    let table = (32 + 32 * sections).min(sealed.len());
    for entry in (32..table).step_by(32).filter(|e| e + 32 <= table) {
        let number = |at: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&sealed[at..at + 8]);
            u64::from_le_bytes(bytes) as usize
        };
        let (from, len) = (number(entry + 8), number(entry + 16));
        let Some(body) = sealed.get(from..from.saturating_add(len)) else { continue };
        let crc = crc32c::crc32c(body).to_le_bytes();
        sealed[entry + 24..entry + 28].copy_from_slice(&crc);
    }
    sealed[24..28].fill(0);
    let crc = crc32c::crc32c(&sealed[..table]).to_le_bytes();
    sealed[24..28].copy_from_slice(&crc);
    sealed
}
