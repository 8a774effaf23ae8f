"""The payment service: custodial wallets, and payments of bills over Stellar."""
