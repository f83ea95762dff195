//! What the threads of a session, or of a command, have learned while inserting rows.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;

use crate::machines::salvage::InsertFit;
use crate::machines::thinning::{Notes, Unsaid};

#[derive(Debug, Default)]
pub struct Learned {
    /// By target table: how much it accepts at once.
    fits: Mutex<Vec<(Arc<str>, InsertFit)>>,
    /// What has been logged about data that could not be written as it is.
    notes: Mutex<Notes>,
}

impl Learned {
    pub fn fit(&self, table: &str) -> InsertFit {
        let fits = self.fits.lock();
        fits.iter()
            .find(|(known, _)| **known == *table)
            .map(|(_, fit)| fit.clone())
            .unwrap_or_default()
    }

    /// Only the latest one counts, for the INSERT that it came from.
    pub fn set_fit(&self, table: &Arc<str>, fit: InsertFit) {
        let mut fits = self.fits.lock();
        match fits.iter_mut().find(|(known, _)| *known == *table) {
            Some((_, known)) => *known = fit,
            None => fits.push((Arc::clone(table), fit)),
        }
    }

    /// Counts one more occurrence of this amount. `Some`: log it.
    pub fn note(&self, of: String, amount: usize) -> Option<Unsaid> {
        self.notes.lock().on_note(of, amount, Instant::now())
    }
}
