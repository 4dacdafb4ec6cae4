//! The alphabet of byte-level BPE: each byte as one printable character.
//!
//! GPT-2 keeps the printable bytes of Latin-1 as they are and moves the others, in order, to the
//! characters from U+0100 on; so a space is written U+0120.

/// The characters of the 256 bytes.
pub(super) const CHARS: [char; 256] = chars();

/// The byte that a character stands for, if it is one of the 256.
pub(super) fn byte_of(character: char) -> Option<u8> {
    let code = character as u32;
    match code {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => Some(code as u8),
        0x100..=0x120 => Some((code - 0x100) as u8),
        0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

const fn chars() -> [char; 256] {
    let mut out = ['\0'; 256];
    let mut moved = 0;
    let mut byte = 0;
    while byte < 256 {
        let stays = matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
        let code = if stays {
            byte
        } else {
            moved += 1;
            0xff + moved
        };
        out[byte as usize] = match char::from_u32(code) {
            Some(character) => character,
            None => panic!("every code below U+0200 is a character"),
        };
        byte += 1;
    }
    out
}
