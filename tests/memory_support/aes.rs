//! The AES-256 key schedule of FIPS 197, so that a search knows round keys when it meets them.

/// The S-box, from its definition: the inverse in GF(2^8), then the affine map.
fn sbox(x: u8) -> u8 {
    let inverse = (0..254).fold(1, |product, _| times(product, x));
    (0..5).fold(0x63, |sum, turn| sum ^ inverse.rotate_left(turn))
}

/// Multiplication in GF(2^8).
fn times(mut a: u8, mut b: u8) -> u8 {
    let mut product = 0;
    while b != 0 {
        if b & 1 == 1 {
            product ^= a;
        }
        a = (a << 1) ^ if a & 0x80 == 0 { 0 } else { 0x1b };
        b >>= 1;
    }
    product
}

/// The fifteen round keys.
pub(crate) fn round_keys(key: &[u8]) -> Vec<[u8; 16]> {
    assert_eq!(key.len(), 32, "AES-256");
    let mut words: Vec<[u8; 4]> = key.as_chunks::<4>().0.to_vec();
    let mut constant = 1;
    for n in 8..60 {
        let mut word = words[n - 1];
        if n % 8 == 0 {
            word.rotate_left(1);
            word = word.map(sbox);
            word[0] ^= constant;
            constant = times(constant, 2);
        } else if n % 8 == 4 {
            word = word.map(sbox);
        }
        words.push(std::array::from_fn(|i| word[i] ^ words[n - 8][i]));
    }
    words.as_chunks::<4>().0.iter().map(|four| std::array::from_fn(|i| four[i / 4][i % 4])).collect()
}

/// The inner ones as the equivalent inverse cipher wants them: through InvMixColumns.
pub(crate) fn inverse_round_keys(key: &[u8]) -> Vec<[u8; 16]> {
    let mixed = |round: &[u8; 16]| -> [u8; 16] {
        std::array::from_fn(|i| {
            let column = &round[i / 4 * 4..][..4];
            (0..4).fold(0, |sum, j| sum ^ times(column[j], [14, 11, 13, 9][(j + 4 - i % 4) % 4]))
        })
    };
    round_keys(key)[1..14].iter().map(mixed).collect()
}

#[test]
fn the_schedule_is_that_of_the_standard() {
    let hex = |text: &str| -> Vec<u8> {
        (0..text.len()).step_by(2).map(|i| u8::from_str_radix(&text[i..i + 2], 16).expect("hex")).collect()
    };
    // FIPS 197, A.3 and C.3.
    let keys = round_keys(&hex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4"));
    assert_eq!(keys[2][..], hex("9ba354118e6925afa51a8b5f2067fcde"));
    assert_eq!(keys[14][..], hex("fe4890d1e6188d0b046df344706c631e"));
    let key: Vec<u8> = (0..32).collect();
    assert_eq!(inverse_round_keys(&key)[12][..], hex("34f1d1ffbfceaa2ffce9e25f2558016e"));
}
