// Package tcp has the steps of a connect over TCP for which neither the standard library
// nor x/sys has a call. The relay's connects and those of checks use them.
package tcp
