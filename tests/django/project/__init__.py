"""A Django project as others have it: one app, one database, one cache in Redis."""
