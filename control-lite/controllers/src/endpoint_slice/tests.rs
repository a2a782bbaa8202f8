//! Slices change as little as possible, and never hold more than a hundred endpoints.
