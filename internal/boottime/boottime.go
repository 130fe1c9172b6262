// Package boottime reads a clock that also counts while the machine sleeps, which
// that of package time does not, and that nobody sets.
package boottime
