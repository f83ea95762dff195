//! A set of columns, by index.

/// A set of places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ColumnSet(u128);

impl ColumnSet {
    /// The first `count` places.
    pub fn first(count: usize) -> ColumnSet {
        let mut places = ColumnSet::default();
        (0..count).for_each(|place| places.add(place));
        places
    }

    pub fn add(&mut self, place: usize) {
        assert!(place < 128, "a source has fewer than 128 columns");
        self.0 |= 1 << place;
    }

    pub fn without(self, place: usize) -> ColumnSet {
        ColumnSet(self.0 & !(1 << place))
    }

    pub fn has(self, place: usize) -> bool {
        self.0 >> place & 1 == 1
    }

    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn union(self, other: ColumnSet) -> ColumnSet {
        ColumnSet(self.0 | other.0)
    }

    pub fn intersection(self, other: ColumnSet) -> ColumnSet {
        ColumnSet(self.0 & other.0)
    }

    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let place = rest.trailing_zeros();
            rest &= rest.checked_sub(1)?;
            Some(place as usize)
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn places_are_given_as_they_were_added(
            mut added in proptest::collection::vec(0..128_usize, 0..20),
        ) {
            let mut places = ColumnSet::default();
            added.iter().for_each(|&place| places.add(place));
            added.sort_unstable();
            added.dedup();
            prop_assert_eq!(places.iter().collect::<Vec<_>>(), added);
        }
    }
}
