//! Randomness: labelled streams from one seed, so that a new draw in one never shifts another.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use xxhash_rust::xxh3::xxh3_64;

/// A source of streams. Copies give the same streams.
#[derive(Clone)]
pub struct Rng {
    seed: [u8; 32],
}

impl Rng {
    /// A source with this seed: from the operating system in production, from the run's number in simulation.
    pub fn from_seed(seed: [u8; 32]) -> Self {
        Self { seed }
    }

    /// The stream with this label. The same label gives the same stream from its beginning.
    pub fn stream(&self, label: &str) -> RngStream {
        let mut rng = ChaCha8Rng::from_seed(self.seed);
        rng.set_stream(xxh3_64(label.as_bytes()));
        RngStream(rng)
    }

    /// A source whose streams are unrelated to this one's.
    pub fn child(&self, label: &str) -> Self {
        let mut seed = [0; 32];
        self.stream(label).0.fill_bytes(&mut seed);
        Self { seed }
    }

    /// The draw number `counter` of `entity` in the stream `label`: a pure function, whatever else was drawn.
    pub fn draw(&self, label: &str, entity: u64, counter: u64) -> u64 {
        let mut rng = ChaCha8Rng::from_seed(self.seed);
        rng.set_stream(xxh3_64(label.as_bytes()) ^ entity.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        rng.set_word_pos(u128::from(counter) * 16);
        rng.next_u64()
    }
}

/// One stream of a [`Rng`].
pub struct RngStream(ChaCha8Rng);

impl RngStream {
    /// The next 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number in `low..high`, each (all but exactly) as likely as another.
    ///
    /// # Panics
    /// If the range is empty.
    pub fn range(&mut self, low: u64, high: u64) -> u64 {
        assert!(low < high, "empty range {low}..{high}");
        low + scale(self.bits(), high - low)
    }

    /// True `permille` times in a thousand.
    pub fn chance(&mut self, permille: u64) -> bool {
        self.range(0, 1000) < permille
    }

    /// One of the slice's elements.
    ///
    /// # Panics
    /// If the slice is empty.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.range(0, of.len() as u64) as usize]
    }

    /// Fills `bytes`.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        self.0.fill_bytes(bytes);
    }
}

/// `bits` mapped onto `0..span` (Lemire's multiplication, without the rejection step).
pub(crate) fn scale(bits: u64, span: u64) -> u64 {
    ((u128::from(bits) * u128::from(span)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_do_not_disturb_each_other() {
        let rng = Rng::from_seed([7; 32]);
        let (mut a, mut b) = (rng.stream("a"), rng.stream("b"));
        let first: Vec<u64> = (0..4).map(|_| a.bits()).collect();
        let mut again = rng.stream("a");
        let second: Vec<u64> = (0..4)
            .map(|_| {
                b.bits();
                again.bits()
            })
            .collect();
        assert_eq!(first, second);
        assert_ne!(rng.stream("b").bits(), first[0]);
        assert_eq!(rng.draw("x", 3, 9), rng.draw("x", 3, 9));
        assert_ne!(rng.draw("x", 3, 9), rng.draw("x", 3, 10));
        assert_ne!(rng.draw("x", 3, 9), rng.draw("x", 4, 9));
    }
}
