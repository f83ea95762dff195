//! A set of columns, by index.

use smallvec::SmallVec;

const BITS: usize = u64::BITS as usize;

/// A set of places. Of up to 128 columns it needs no memory of its own.
#[derive(Debug, Clone, Default)]
pub struct ColumnSet(SmallVec<[u64; 2]>);

impl ColumnSet {
    /// The first `count` places.
    pub fn first(count: usize) -> ColumnSet {
        let mut places = ColumnSet::default();
        (0..count).for_each(|place| places.add(place));
        places
    }

    pub fn add(&mut self, place: usize) {
        let word = place / BITS;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        self.0[word] |= 1 << (place % BITS);
    }

    pub fn without(mut self, place: usize) -> ColumnSet {
        if let Some(word) = self.0.get_mut(place / BITS) {
            *word &= !(1 << (place % BITS));
        }
        self
    }

    pub fn has(&self, place: usize) -> bool {
        self.0.get(place / BITS).is_some_and(|word| word >> (place % BITS) & 1 == 1)
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(|word| *word == 0)
    }

    /// Adds all of the other one.
    pub fn add_all(&mut self, other: &ColumnSet) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(word, other)| *word |= other);
    }

    pub fn intersection(&self, other: &ColumnSet) -> ColumnSet {
        ColumnSet(self.0.iter().zip(&other.0).map(|(word, other)| word & other).collect())
    }

    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(at, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let place = rest.trailing_zeros() as usize;
                rest &= rest.checked_sub(1)?;
                Some(at * BITS + place)
            })
        })
    }
}

/// Whatever memory they take.
impl PartialEq for ColumnSet {
    fn eq(&self, other: &ColumnSet) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for ColumnSet {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn set_of(places: &[usize]) -> ColumnSet {
        let mut set = ColumnSet::default();
        places.iter().for_each(|&place| set.add(place));
        set
    }

    proptest! {
        #[test]
        fn places_are_given_as_they_were_added(
            a in proptest::collection::btree_set(0..2_000_usize, 0..20),
            b in proptest::collection::btree_set(0..2_000_usize, 0..20),
        ) {
            let list = |set: &ColumnSet| set.iter().collect::<Vec<_>>();
            let (of_a, of_b) = (Vec::from_iter(a.clone()), Vec::from_iter(b.clone()));
            let (mut set, other) = (set_of(&of_a), set_of(&of_b));
            prop_assert_eq!(list(&set), of_a.clone());
            prop_assert!((0..2_000).all(|place| set.has(place) == a.contains(&place)));
            let both: Vec<usize> = a.intersection(&b).copied().collect();
            prop_assert_eq!(list(&set.intersection(&other)), both);
            set.add_all(&other);
            prop_assert_eq!(list(&set), a.union(&b).copied().collect::<Vec<_>>());
            let rest = of_b.iter().fold(set.clone(), |set, place| set.without(*place));
            prop_assert_eq!(rest == set, b.is_empty());
            prop_assert_eq!(list(&rest), a.difference(&b).copied().collect::<Vec<_>>());
        }
    }
}
