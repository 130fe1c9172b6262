// Package tcp has the steps of a connect over TCP, and the options of its sockets, for which
// neither the standard library nor x/sys has a call.
package tcp
