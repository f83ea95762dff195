//! A table in use: its mapping, and its form on both sides.

use std::sync::Arc;

use crate::postgres::source_table::SourceTable;
use crate::rows::{Block, Shape, Target};
use crate::services::assemble::new_blocks;
use crate::services::mapping::Mapping;
use crate::services::source::Source;

pub struct Member {
    pub mapping: Arc<dyn Mapping>,
    /// By target table.
    pub shapes: Vec<Shape>,
    /// As Postgres had it when the session began.
    pub found: SourceTable,
}

impl Member {
    pub fn source(&self) -> &Source {
        self.mapping.source()
    }

    pub fn targets(&self) -> &[Target] {
        self.mapping.targets()
    }

    /// One for each target table.
    pub fn blocks(&self) -> Vec<Block> {
        new_blocks(&*self.mapping, &self.shapes)
    }

    pub fn block_of(&self, target: usize) -> Block {
        Block::new(&self.targets()[target].columns, &self.shapes[target])
    }
}
