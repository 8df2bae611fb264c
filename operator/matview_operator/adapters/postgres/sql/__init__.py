"""Every statement that the operator sends, and nothing that sends one. Imports no other part of this adapter."""
