//! Reads live interpreters of every known version, and recordings of them.

#[cfg(test)]
mod python;
#[cfg(test)]
mod zoo;
