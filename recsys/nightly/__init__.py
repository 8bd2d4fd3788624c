"""The nightly job: what is new comes in, a challenger is made, and only one that is not worse goes live."""
