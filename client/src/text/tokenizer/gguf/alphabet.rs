//! The alphabet of byte-level tokenizers: a printable character for each byte.
//!
//! From `bytes_to_unicode` of GPT-2, <https://github.com/openai/gpt-2/blob/master/src/encoder.py>:
//! bytes that are printable in Latin-1 stand for themselves, the other 68 are U+0100 and up, in
//! order.

/// The byte that a character stands for; `None` where it is none of the alphabet.
pub(in super::super) fn byte_of(character: char) -> Option<u8> {
    let number = u32::from(character);
    let byte = match number {
        0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff => number,
        0x100..=0x120 => number - 0x100,
        0x121..=0x142 => number - 0x121 + 0x7f,
        0x143 => 0xad,
        _ => return None,
    };
    u8::try_from(byte).ok()
}

/// The character that stands for a byte.
#[cfg(test)]
pub(in super::super) fn character_of(byte: u8) -> char {
    let all = (0..=0x143).filter_map(char::from_u32);
    all.into_iter().find(|&c| byte_of(c) == Some(byte)).expect("each byte has a character")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_has_one_character() {
        let bytes: Vec<u8> =
            (0..=0x10ffff).filter_map(char::from_u32).filter_map(byte_of).collect();
        assert_eq!(bytes.len(), 256);
        for byte in 0..=255 {
            assert_eq!(byte_of(character_of(byte)), Some(byte));
        }
    }

    #[test]
    fn a_space_and_a_line_feed_are_written_as_gpt_2_writes_them() {
        assert_eq!(character_of(b' '), 'Ġ');
        assert_eq!(character_of(b'\n'), 'Ċ');
        assert_eq!(character_of(0x7f), 'ġ');
        assert_eq!(character_of(0xad), 'Ń');
    }
}
