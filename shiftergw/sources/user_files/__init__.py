"""Files of users as sources of images: uploads, and files that users import."""
