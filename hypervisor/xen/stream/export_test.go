package stream

// VerifyForTest asks Xen's own tool of a stream, for the tests outside.
var VerifyForTest = verify
