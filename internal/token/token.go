// Package token compares the secret of a request with the one that is expected.
package token

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
)

// Token is a secret that a request may show as "Authorization: Bearer SECRET".
// No request matches the zero Token.
type Token struct {
	bearer, word [sha256.Size]byte // digests of the header's whole value, and of the secret
	set          bool
}

// New returns the token for secret, or the zero Token when it is empty.
func New(secret string) Token {
	if secret == "" {
		return Token{}
	}
	return Token{bearer: sha256.Sum256([]byte("Bearer " + secret)), word: sha256.Sum256([]byte(secret)), set: true}
}

// Shown reports whether r carries exactly the token, once. The comparison takes
// the same time for a wrong token: digests have a fixed length and are always
// compared to the end.
func (t Token) Shown(r *http.Request) bool {
	sent, once := "", false
	if values := r.Header["Authorization"]; len(values) == 1 {
		sent, once = values[0], true
	}
	digest := sha256.Sum256([]byte(sent))
	return subtle.ConstantTimeCompare(digest[:], t.bearer[:]) == 1 && once && t.set
}

// IsPassword reports whether r carries the token as the password of Basic
// authentication, with any user name, which is how a browser asks for it. It compares
// as Shown does.
func (t Token) IsPassword(r *http.Request) bool {
	_, sent, ok := r.BasicAuth()
	digest := sha256.Sum256([]byte(sent))
	return subtle.ConstantTimeCompare(digest[:], t.word[:]) == 1 && ok && len(r.Header["Authorization"]) == 1 && t.set
}
