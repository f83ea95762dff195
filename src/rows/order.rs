//! The order of a block's rows by the sorting key of their table.
//!
//! The rows of a batch have few organizations, projects and environments between them, and would be
//! compared by those long texts over and over, to find them equal. So each such combination gets
//! its rank first, once, and rows are compared by numbers as far as that goes.

use std::cmp::Ordering;

use hashbrown::HashMap;

use super::block::Block;
use super::column_type::ColumnType;
use super::scalar::Scalar;

/// All rows, ordered by the given columns; equal rows keep the order they came in.
pub fn sorted_by(block: &Block, columns: &[usize]) -> Vec<usize> {
    // The last column is the id: every row has its own.
    let few = columns.len().saturating_sub(1);
    let is_text = |&&at: &&usize| scalar_of(block, at) == Scalar::String;
    let texts: Vec<usize> = columns.iter().take(few).take_while(is_text).copied().collect();
    let ranks = ranks(block, &texts);
    let rest = columns.get(texts.len()..).unwrap_or_default();
    let numbers = rest.first().and_then(|&at| numbers_of(block, at));
    let rest = rest.get(usize::from(numbers.is_some())..).unwrap_or_default();
    let number = |row: usize| numbers.as_ref().map_or(0, |numbers| numbers[row]);
    let mut keys: Vec<(u32, u64, usize)> =
        (0..block.rows()).map(|row| (ranks[row], number(row), row)).collect();
    keys.sort_unstable_by(|a, b| {
        let by_number = (a.0, a.1).cmp(&(b.0, b.1));
        by_number.then_with(|| compare(block, rest, a.2, b.2)).then(a.2.cmp(&b.2))
    });
    keys.into_iter().map(|(_, _, row)| row).collect()
}

fn compare(block: &Block, columns: &[usize], a: usize, b: usize) -> Ordering {
    let differ = |&column: &usize| {
        let (a, b) = (block.value(column, a), block.value(column, b));
        let order = match (a, b) {
            (Some(a), Some(b)) => scalar_of(block, column).compare(a, b),
            // NULL comes last in ClickHouse.
            (a, b) => a.is_none().cmp(&b.is_none()),
        };
        Some(order).filter(|order| order.is_ne())
    };
    columns.iter().find_map(differ).unwrap_or(Ordering::Equal)
}

/// By row: the place of its texts among all that there are, in their order.
fn ranks(block: &Block, columns: &[usize]) -> Vec<u32> {
    let mut ranks = vec![0; block.rows()];
    for &column in columns {
        let mut places: HashMap<(u32, &[u8]), usize> = HashMap::new();
        let mut found: Vec<(u32, &[u8])> = Vec::new();
        // The index in `found` for each row.
        let mut indexes = Vec::with_capacity(ranks.len());
        for (row, &rank) in ranks.iter().enumerate() {
            let key = (rank, block.text(column, row));
            indexes.push(*places.entry(key).or_insert_with(|| {
                found.push(key);
                found.len() - 1
            }));
        }
        let mut order: Vec<usize> = (0..found.len()).collect();
        order.sort_unstable_by_key(|&index| found[index]);
        let mut rank_of = vec![0; found.len()];
        for (rank, index) in order.into_iter().enumerate() {
            rank_of[index] = u32::try_from(rank).expect("a block has fewer rows than that");
        }
        for (rank, index) in ranks.iter_mut().zip(indexes) {
            *rank = rank_of[index];
        }
    }
    ranks
}

fn scalar_of(block: &Block, column: usize) -> Scalar {
    // Nothing else can be in a sorting key that we make.
    block.spec(column).kind.scalar().unwrap_or(Scalar::String)
}

/// As unsigned numbers of the same order.
fn numbers_of(block: &Block, column: usize) -> Option<Vec<u64>> {
    let (ColumnType::Of(scalar), [values]) = (&block.spec(column).kind, block.lists(column)) else {
        return None;
    };
    (0..values.len()).map(|row| scalar.rank(values.at(row))).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use std::sync::Arc;

    use super::*;
    use crate::rows::{ColumnSpec, Shape, columns};

    fn specs() -> Arc<[ColumnSpec]> {
        columns! {
            "a" String,
            "b" String,
            "at" Millis,
            "n" UInt64,
            "id" String,
        }
    }

    type Values = (u8, u8, i64, u64, u8);

    fn block(rows: &[Values]) -> Block {
        let shape = Shape::of(vec![true; specs().len()]);
        let mut block = Block::new(&specs(), &shape);
        for (a, b, at, n, id) in rows {
            block.put_str(&[*a]);
            // Also texts of which one is a prefix of the other.
            block.put_str(&vec![b'x'; usize::from(*b)]);
            block.put_millis(*at);
            block.put_u64(*n);
            block.put_str(&[*id]);
            block.end_row();
        }
        block
    }

    proptest! {
        #[test]
        fn the_order_is_that_of_the_columns_one_after_the_other(
            rows in proptest::collection::vec(
                (0..3_u8, 0..3_u8, -2..2_i64, 0..2_u64, 0..3_u8), 0..40),
            columns in proptest::sample::select(vec![
                vec![0, 1, 2, 4], vec![4], vec![], vec![0], vec![2, 4], vec![0, 3, 2, 4],
                vec![2, 0, 1], vec![4, 1, 0, 2, 3],
            ]),
        ) {
            let block = block(&rows);
            let mut expected: Vec<usize> = (0..rows.len()).collect();
            expected.sort_by(|&a, &b| compare(&block, &columns, a, b));
            prop_assert_eq!(sorted_by(&block, &columns), expected);
        }
    }

    #[test]
    fn times_before_1970_and_the_ends_of_the_range_are_ordered() {
        let rows: Vec<Values> =
            [5, i64::MAX, -1, i64::MIN, 0].into_iter().map(|at| (0, 0, at, 0, 0)).collect();
        assert_eq!(sorted_by(&block(&rows), &[0, 1, 2, 4]), [3, 2, 4, 0, 1]);
    }
}
