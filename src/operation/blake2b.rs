//! BLAKE2b with a 16-byte digest, as RFC 7693 has it: what a [`Fingerprint`](super::Fingerprint) is made with.
//!
//! Promises: the same digest as any other implementation, so that a fingerprint can be computed anywhere.
//! Never: takes a key or holds a secret. Written out here because every crate for it brings `unsafe` or a
//! tree of its own, for eighty lines that never change. Proof: the vectors in the tests, from `hashlib`.

const BLOCK_BYTES: usize = 128;

const IV: [u64; 8] = [
    0x6a09_e667_f3bc_c908,
    0xbb67_ae85_84ca_a73b,
    0x3c6e_f372_fe94_f82b,
    0xa54f_f53a_5f1d_36f1,
    0x510e_527f_ade6_82d1,
    0x9b05_688c_2b3e_6c1f,
    0x1f83_d9ab_fb41_bd6b,
    0x5be0_cd19_137e_2179,
];

/// Digest length 16, no key, fan-out 1, depth 1: the first word of the parameter block.
const PARAMETERS: u64 = 0x0101_0010;

pub(super) struct Blake2b {
    state: [u64; 8],
    block: [u8; BLOCK_BYTES],
    filled: usize,
    hashed: u128,
}

impl Blake2b {
    /// `personal` keeps digests made for different purposes apart; zeros: none.
    pub(super) fn new(personal: [u8; 16]) -> Self {
        let personal = u128::from_le_bytes(personal);
        let mut state = IV;
        state[0] ^= PARAMETERS;
        state[6] ^= personal as u64;
        state[7] ^= (personal >> 64) as u64;
        Blake2b { state, block: [0; BLOCK_BYTES], filled: 0, hashed: 0 }
    }

    pub(super) fn update(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            // Only now: the last block is compressed differently, so a full one waits for more.
            if self.filled == BLOCK_BYTES {
                self.compress(false);
                self.filled = 0;
            }
            let room = self.block.get_mut(self.filled..).unwrap_or_default();
            let taken = room.len().min(data.len());
            for (to, from) in room.iter_mut().zip(data) {
                *to = *from;
            }
            self.filled += taken;
            self.hashed += taken as u128;
            data = data.get(taken..).unwrap_or_default();
        }
    }

    pub(super) fn finish(mut self) -> [u8; 16] {
        self.block.iter_mut().skip(self.filled).for_each(|byte| *byte = 0);
        self.compress(true);
        let low = u128::from(self.state[0]);
        let high = u128::from(self.state[1]);
        (low | (high << 64)).to_le_bytes()
    }

    fn compress(&mut self, last: bool) {
        let mut m = [0u64; 16];
        for (word, bytes) in m.iter_mut().zip(self.block.chunks_exact(8)) {
            *word = bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        }
        let [h0, h1, h2, h3, h4, h5, h6, h7] = self.state;
        let [i0, i1, i2, i3, i4, i5, i6, i7] = IV;
        let i4 = i4 ^ self.hashed as u64;
        let i5 = i5 ^ (self.hashed >> 64) as u64;
        let i6 = if last { !i6 } else { i6 };
        let mut v = [h0, h1, h2, h3, h4, h5, h6, h7, i0, i1, i2, i3, i4, i5, i6, i7];

        rounds!(v, m,
            [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15]
            [14 10 4 8 9 15 13 6 1 12 0 2 11 7 5 3]
            [11 8 12 0 5 2 15 13 10 14 3 6 7 1 9 4]
            [7 9 3 1 13 12 11 14 2 6 5 10 4 0 15 8]
            [9 0 5 7 2 4 10 15 14 1 11 12 6 8 3 13]
            [2 12 6 10 0 11 8 3 4 13 7 5 15 14 1 9]
            [12 5 1 15 14 13 4 10 0 7 6 3 9 2 8 11]
            [13 11 7 14 12 1 3 9 5 0 15 4 8 6 2 10]
            [6 15 14 9 11 3 0 8 12 2 13 7 1 4 10 5]
            [10 2 8 4 7 6 1 5 15 11 9 14 3 12 13 0]
            [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15]
            [14 10 4 8 9 15 13 6 1 12 0 2 11 7 5 3]
        );

        let [low @ .., _, _, _, _, _, _, _, _] = v;
        let [_, _, _, _, _, _, _, _, high @ ..] = v;
        let low: [u64; 8] = low;
        for ((word, low), high) in self.state.iter_mut().zip(low).zip(high) {
            *word ^= low ^ high;
        }
    }
}

/// Written with literal indices, so that the compiler sees that each is in bounds.
macro_rules! rounds {
    ($v:ident, $m:ident, $([$a:literal $b:literal $c:literal $d:literal $e:literal $f:literal $g:literal $h:literal
        $i:literal $j:literal $k:literal $l:literal $n:literal $o:literal $p:literal $q:literal])*) => {$(
        mix!($v, 0, 4, 8, 12, $m[$a], $m[$b]);
        mix!($v, 1, 5, 9, 13, $m[$c], $m[$d]);
        mix!($v, 2, 6, 10, 14, $m[$e], $m[$f]);
        mix!($v, 3, 7, 11, 15, $m[$g], $m[$h]);
        mix!($v, 0, 5, 10, 15, $m[$i], $m[$j]);
        mix!($v, 1, 6, 11, 12, $m[$k], $m[$l]);
        mix!($v, 2, 7, 8, 13, $m[$n], $m[$o]);
        mix!($v, 3, 4, 9, 14, $m[$p], $m[$q]);
    )*};
}

macro_rules! mix {
    ($v:ident, $a:literal, $b:literal, $c:literal, $d:literal, $x:expr, $y:expr) => {
        $v[$a] = $v[$a].wrapping_add($v[$b]).wrapping_add($x);
        $v[$d] = ($v[$d] ^ $v[$a]).rotate_right(32);
        $v[$c] = $v[$c].wrapping_add($v[$d]);
        $v[$b] = ($v[$b] ^ $v[$c]).rotate_right(24);
        $v[$a] = $v[$a].wrapping_add($v[$b]).wrapping_add($y);
        $v[$d] = ($v[$d] ^ $v[$a]).rotate_right(16);
        $v[$c] = $v[$c].wrapping_add($v[$d]);
        $v[$b] = ($v[$b] ^ $v[$c]).rotate_right(63);
    };
}

use {mix, rounds};
