//! Images in, batches out.
