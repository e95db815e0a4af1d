"""What several tests share: small networks, models, rows and programs; processes looked at through /proc."""
