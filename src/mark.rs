//! Marks of rare situations. A simulation that never comes by a mark has not tested what the mark names; in production
//! they are nothing. The list of all is `sim/mark.rs`.

/// Marks that the situation of this name is here, if the condition holds.
macro_rules! sometimes {
    ($name:literal) => {
        $crate::mark::hit($name)
    };
    ($condition:expr, $name:literal) => {
        if cfg!(feature = "sim") && $condition {
            $crate::mark::hit($name);
        }
    };
}

/// Notes a mark.
#[inline]
pub fn hit(name: &'static str) {
    #[cfg(feature = "sim")]
    crate::sim::mark::note(name);
    #[cfg(not(feature = "sim"))]
    let _ = name;
}
